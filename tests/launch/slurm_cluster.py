"""A Slurm of one host, started and stopped by the tests: installed, or unpacked from Debian's packages for this session."""

from __future__ import annotations

import getpass
import os
import re
import shutil
import socket
import subprocess
import time
from pathlib import Path

PACKAGES = "slurm-wlm slurmctld slurmd slurm-client slurm-wlm-basic-plugins munge libmunge2 libhwloc15 liblua5.1-0"

CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={root}/munge.sock,cred_expire=5
CredType=cred/munge
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd.log
SlurmctldPort={ctld_port}
SlurmdPort={d_port}
PluginDir={plugins}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=300
MinJobAge=3600
SchedulerParameters=sched_interval=2,sched_min_interval=0
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP OverSubscribe=YES
"""


class NoSlurm(Exception):
    """Why there is none."""


class Cluster:
    """A running Slurm whose files lie in `root`; `env` is the environment in which its commands are found."""

    def __init__(self, root: Path):
        self.root, self.daemons = root, []
        usr = _installed() or _unpacked(root)
        self.env = os.environ | {
            "PATH": f"{usr / 'bin'}:{usr / 'sbin'}:{os.environ['PATH']}",
            "SLURM_CONF": str(root / "slurm.conf"),
        }
        if usr != Path("/usr"):
            lib = next(usr.glob("lib/*/libmunge.so.2")).parent
            self.env["LD_LIBRARY_PATH"] = f"{lib}:{lib / 'slurm-wlm'}"
        self.usr = usr

    def start(self) -> None:
        for name in ("state", "spool"):
            (self.root / name).mkdir(mode=0o755)
        plugins = next(self.usr.glob("lib/*/slurm-wlm"))
        ports = {"ctld_port": _free_port(), "d_port": _free_port()}
        facts = {"host": socket.gethostname(), "user": getpass.getuser(), "root": self.root, "plugins": plugins}
        (self.root / "slurm.conf").write_text(CONF.format(**facts, **ports))
        key = self.root / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        self._daemon(
            *("munged", "--foreground", "--force", f"--socket={self.root}/munge.sock", f"--key-file={key}"),
            *(f"--{what}-file={self.root}/munged.{what}" for what in ("pid", "log", "seed")),
        )
        self._until(lambda: (self.root / "munge.sock").exists(), "munged")
        self._daemon("slurmctld", "-D", "-c", alternative="slurmctld-wlm")
        stepd = next(p for p in (self.usr / "sbin/slurmstepd-wlm", self.usr / "sbin/slurmstepd") if p.exists())
        self._daemon("slurmd", "-D", "-d", str(stepd), alternative="slurmd-wlm")
        self._until(lambda: "idle" in self.run("sinfo", "-h", "-o", "%T", check=False), "the node")

    def run(self, *command: str, check: bool = True) -> str:
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=300)
        assert not check or done.returncode == 0, (command, done.stderr)
        return done.stdout

    def job(self, number: str) -> dict[str, str]:
        """What scontrol says of a job, by name."""
        return dict(re.findall(r"(\w+)=(\S*)", self.run("scontrol", "show", "job", number)))

    def stop(self) -> None:
        self.run("scancel", "--state=RUNNING", "--full", check=False) if len(self.daemons) == 3 else None
        for daemon in reversed(self.daemons):
            daemon.terminate()
        for daemon in self.daemons:
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def _daemon(self, name: str, *arguments: str, alternative: str = "") -> None:
        path = shutil.which(alternative, path=self.env["PATH"]) or shutil.which(name, path=self.env["PATH"])
        assert path, name
        with open(self.root / f"{name}.out", "ab") as out:
            self.daemons.append(
                subprocess.Popen([path, *arguments], env=self.env, stdout=out, stderr=out, start_new_session=True)
            )

    def _until(self, ready, what: str) -> None:
        deadline = time.monotonic() + 300
        while not ready():
            if time.monotonic() > deadline or any(d.poll() is not None for d in self.daemons):
                self.stop()
                logs = {p.name: p.read_text(errors="replace")[-500:] for p in self.root.glob("*.[lo][ou][gt]")}
                raise NoSlurm(f"{what} does not start: {logs}")
            time.sleep(0.2)


def _installed() -> Path | None:
    names = ("sbatch", "slurmctld", "slurmd", "munged")
    return (
        Path("/usr") if all(shutil.which(n, path=f"/usr/bin:/usr/sbin:{os.environ['PATH']}") for n in names) else None
    )


def _unpacked(root: Path) -> Path:
    """Debian's packages, unpacked and not installed."""
    debs = root / "debs"
    debs.mkdir()
    try:
        subprocess.run(
            ["apt-get", "download", *PACKAGES.split()], cwd=debs, capture_output=True, timeout=120, check=True
        )
        for deb in debs.glob("*.deb"):
            subprocess.run(["dpkg", "-x", deb, root / "packages"], capture_output=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise NoSlurm(f"Slurm is not installed, and its Debian packages do not come: {error}") from error
    return root / "packages" / "usr"


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
