"""What surrounds a run: readers of its output, file systems without locks, names and proxies of machines, odd paths."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from launch import local
from nin_jax import console, storage
from nin_jax.devices import processes
from tests.faults import harness

FAST = {"epochs": 1}
NOLOCK = """
import fcntl, os
def flock(fd, operation):
    number = int(os.environ["NOLOCK"])
    raise OSError(number, os.strerror(number))
fcntl.flock = flock
"""


# Readers of stderr and stdout


OUTPUTS = ["2>/dev/full", "2>&1 | head -1", *(["2>&-", "2>&1 | true", ">&- 2>&-"] if harness.FULL else [])]


@pytest.mark.slow
@pytest.mark.parametrize("output", OUTPUTS)
def test_a_run_outlives_the_readers_of_its_output(output: str, tmp_path: Path, calm: Path, tally: Counter[str]) -> None:
    """Nobody reads what is said: the run ends, with all its checkpoints, as it would have."""
    workdir = tmp_path / "run"
    command = [sys.executable, "-m", "nin_jax.main", *harness.words(workdir)]
    script = f'{{ "$@"; echo $? > "{tmp_path}/code"; }} {output}'
    subprocess.run(
        ["bash", "-c", script, "bash", *command], cwd=harness.ROOT, env=harness.environment(), capture_output=True
    )
    assert (tmp_path / "code").read_text() == "0\n"
    harness.assert_same_run(workdir, calm)
    tally["exit 0, bit-equal"] += 1


@pytest.mark.slow
@pytest.mark.parametrize(("output", "code"), [("| true", 0), (">/dev/full", 74)])
def test_a_result_that_cannot_be_stored_is_an_error(output: str, code: int, tmp_path: Path, calm: Path) -> None:
    """Of --mode=eval stdout is the result: a reader that went does not want it, a full disk has lost it."""
    command = [sys.executable, "-m", "nin_jax.main", *harness.words(calm), "--mode=eval"]
    script = f'{{ "$@"; echo $? > "{tmp_path}/code"; }} {output}'
    ended = subprocess.run(
        ["bash", "-c", script, "bash", *command],
        cwd=harness.ROOT,
        env=harness.environment(),
        capture_output=True,
        text=True,
    )
    assert (tmp_path / "code").read_text() == f"{code}\n", ended.stderr
    assert "Traceback" not in ended.stderr
    assert ("No space left" in ended.stderr) == (code == 74)


def test_ctrl_c_in_any_command_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left, console.exiting():
        raise KeyboardInterrupt
    assert (left.value.code, capsys.readouterr().err) == (75, "nin_jax: interrupted; start again\n")


# File systems without locks


@pytest.mark.slow
def test_two_writers_where_there_are_no_locks(tmp_path: Path, calm: Path, tally: Counter[str]) -> None:
    """flock fails as on Lustre and NFS: a line says so, a second run is refused, and after kill -9 the next takes over."""
    (tmp_path / "sitecustomize.py").write_text(NOLOCK)
    env = {"PYTHONPATH": f"{tmp_path}:{harness.ROOT}", "NOLOCK": str(errno.ENOSYS)}
    workdir = tmp_path / "run"
    first = harness.start(harness.words(workdir, epochs=4000), **env)
    try:
        until = time.monotonic() + harness.SECONDS
        while not harness.steps(workdir):
            assert time.monotonic() < until
            assert first.poll() is None
            time.sleep(0.1)
        second = harness.run(harness.words(workdir), **env)
        assert second.code == 2, second.err
        assert "is in use by a live process" in second.last
    finally:
        first.send_signal(signal.SIGKILL)
        _, said = first.communicate()
    assert "is on a file system without locks (Function not implemented)" in said
    third = harness.run(
        harness.words(workdir, epochs=4000),
        {"at": "nin_jax.training.loop:train", "call": 1, "do": "signal", "number": 9},
        **env,
    )
    assert third.code == -9
    other = tmp_path / "other"
    ended = harness.run(harness.words(other), **(env | {"NOLOCK": str(errno.EOPNOTSUPP)}))
    assert ended.code == 0, ended.err
    assert ended.clean()
    harness.assert_same_run(other, calm)
    assert not (other / ".lock.owner").exists()
    tally["exit 2 for the second; bit-equal"] += 1


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, 524])
def test_a_file_stands_for_a_lock(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One owner at a time; an owner that ended leaves nothing, one that was killed is taken over when it has stood still."""

    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(storage.fcntl, "flock", flock)
    monkeypatch.setattr(storage, "BEAT_SECONDS", 0.05)
    path, owner, said = tmp_path / "a[1]" / ".lock", tmp_path / "a[1]" / ".lock.owner", []
    path.parent.mkdir()
    with storage.lock(path, warn=said.append):
        assert owner.read_text().startswith(f"{socket.gethostname()} {os.getpid()} ")
        with pytest.raises(BlockingIOError), storage.lock(path):
            pass
    assert len(said) == 1
    assert os.strerror(number) in said[0]
    assert not owner.exists()
    monkeypatch.setattr(storage, "STALE_SECONDS", 1.0)
    owner.write_text("elsewhere 1 x 7")  # killed
    began = time.monotonic()
    with storage.lock(path):
        assert time.monotonic() - began > 1.0
        assert owner.read_text().startswith(socket.gethostname())
    assert list(path.parent.iterdir()) == [path]
    synced: list[int] = []
    monkeypatch.setattr(storage.os, "fsync", synced.append)
    monkeypatch.setattr(storage, "BEAT_SECONDS", 60.0)
    with storage.lock(path):
        assert synced  # other machines see it at once
        owner.write_text("elsewhere 1 x 0")  # took over while this process was stopped
    assert owner.read_text() == "elsewhere 1 x 0"


def test_another_error_of_a_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says that it is of a lock."""

    def flock(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(storage.fcntl, "flock", flock)
    with (
        pytest.raises(OSError, match=r"cannot be locked: Input/output error: '.*/\.lock'"),
        storage.lock(tmp_path / ".lock"),
    ):
        pass


# Names and proxies


def two_processes(workdir: Path, *, prefix: tuple[str, ...] = (), **env: str) -> harness.Ended:
    """Two processes of a run by the launcher."""
    command = [sys.executable, "-m", "launch.local", "--processes=2", "--", *harness.words(workdir, **FAST)]
    process = subprocess.Popen(
        [*prefix, *command],
        cwd=harness.ROOT,
        env=harness.environment() | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    return harness.finish(process)


@pytest.mark.slow
def test_a_machine_whose_name_does_not_resolve(tmp_path: Path, tally: Counter[str]) -> None:
    """CPUs of two processes reach each other by it: exit 2 and one line that names it."""
    if subprocess.run(["unshare", "-ru", "true"], capture_output=True).returncode:
        pytest.skip("no host name of one's own is allowed here")
    script = 'hostname no-such-machine.invalid && exec "$@"'
    ended = two_processes(tmp_path / "run", prefix=("unshare", "-ru", "sh", "-c", script, "sh"))
    assert ended.code == 2, ended.err
    assert ended.clean(), ended.err
    assert "'no-such-machine.invalid', cannot be resolved" in ended.err
    log = (tmp_path / "run/logs/process-1.log").read_text()
    assert "Traceback" not in log
    tally["exit 2, one line"] += 1


def rendezvous(address: str, tmp_path: Path, number: int = 1, **env: str) -> subprocess.Popen:
    """One of two processes, the other one of which never comes."""
    env = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": str(number), **env}
    return harness.start(harness.words(tmp_path / "run", **FAST), **env)


@pytest.mark.parametrize("address", ["no-such-machine.invalid:1234", "no-such-machine", "127.0.0.1"])
def test_an_address_that_is_none(address: str, tmp_path: Path) -> None:
    """Exit 2, one line that names it."""
    ended = harness.finish(rendezvous(address, tmp_path))
    assert ended.code == 2, ended.err
    assert ended.clean()
    assert address.split(":")[0] in ended.last


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"JAX_COORDINATOR_ADDRESS": "127.0.0.1:1"}, "go together"),
        (
            {
                "NIN_JAX_RENDEZVOUS_SECONDS": "5 min",
                **dict(zip(processes.NAMES, ("127.0.0.1:1", "2", "1"), strict=True)),
            },
            "NIN_JAX_RENDEZVOUS_SECONDS=5 min: must be",
        ),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "have not found each other"),  # Open MPI 5, which JAX does not know
        ({"SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}, "have not found each other"),
    ],
    ids=["incomplete", "seconds", "mpirun", "srun"],
)
def test_an_environment_that_does_not_do(env: dict[str, str], said: str, tmp_path: Path) -> None:
    """Exit 2 and one line, and no process that trains alone what several were to train together."""
    ended = harness.run(harness.words(tmp_path / "run", **FAST), **env)
    assert ended.code == 2, ended.err
    assert ended.err.count("\n") == 1
    assert said in ended.last


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_a_rendezvous_is_bounded(number: int, tmp_path: Path, tally: Counter[str]) -> None:
    """The other process never comes: exit 2, one line that names the address, and soon."""
    address = f"127.0.0.1:{local.free_port()}"
    ended = harness.finish(rendezvous(address, tmp_path, number, NIN_JAX_RENDEZVOUS_SECONDS="12"), 300)
    assert ended.code == 2, ended.err
    assert ended.clean()
    assert f"have not found each other at {address} within 12 s" in ended.last
    assert "waiting for the other processes" in ended.err
    tally["exit 2, one line"] += 1


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_stop_is_obeyed_while_waiting_for_the_others(number: int, tmp_path: Path, tally: Counter[str]) -> None:
    process = rendezvous("127.0.0.1:1", tmp_path, NIN_JAX_RENDEZVOUS_SECONDS="9999")
    assert process.stderr is not None
    assert "waiting for the other processes" in process.stderr.readline()
    process.send_signal(number)
    ended = harness.finish(process, 300)
    assert ended.code == 75, ended.err
    assert ended.last.startswith(f"nin_jax: {signal.Signals(number).name}: ended at once, without saving")
    tally["exit 75"] += 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["http_proxy", "https_proxy"] if harness.FULL else ["http_proxy"])
def test_processes_of_a_run_need_no_proxy(name: str, tmp_path: Path, tally: Counter[str]) -> None:
    """A proxy that nobody can reach is in the environment; the processes find each other all the same."""
    ended = two_processes(tmp_path / "run", **{name: "http://127.0.0.1:9"})
    assert ended.code == 0, ended.err
    assert "proxy" not in ended.err
    tally["exit 0"] += 1


# Paths


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a[1]", "b\\c\\", "*?{x,y} \n%41"] if harness.FULL else ["a[1]*?{x,y} \n%41b\\c\\"])
def test_a_run_in_an_odd_directory(name: str, tmp_path: Path, calm: Path, tally: Counter[str]) -> None:
    """Preempted, resumed and evaluated, with its cache under such a name too: the undisturbed run."""
    workdir, cache = tmp_path / name / "run", tmp_path / name / "cache"
    hook = {"at": "nin_jax.runs.record:Record.write", "call": 3, "do": "signal", "number": signal.SIGTERM}
    ended = harness.run(harness.words(workdir), hook, XDG_CACHE_HOME=str(cache))
    assert ended.code == 75, ended.err
    assert "saved step" in ended.last
    assert harness.steps(workdir)
    ended = harness.run(harness.words(workdir), XDG_CACHE_HOME=str(cache))
    assert ended.code == 0, ended.err
    assert "from step" in ended.err
    harness.assert_same_run(workdir, calm)
    ended = harness.run([*harness.words(workdir), "--mode=eval"], XDG_CACHE_HOME=str(cache))
    assert ended.code == 0, ended.err
    tally["bit-equal"] += 1
