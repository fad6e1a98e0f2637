"""Several processes of one run on this machine.

python -m launch.local --processes=2 [--cpu_devices=4] [--restarts=3] [--dry_run] -- --config=experiments/NAME.py ...

They find each other over loopback and share the GPUs evenly; without GPUs each has --cpu_devices. The first one writes to
the terminal, the others to WORKDIR/logs/process-N.log. SIGTERM and Ctrl-C are passed on: the run saves a checkpoint and
this exits with 75. If a single process is preempted or killed, all of them restart from the newest checkpoint.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from launch import command, processes
from nin_jax.console import say
from nin_jax.errors import Preempted, UserError

RENDEZVOUS_SECONDS = 60  # for all processes to find each other
GRACE_SECONDS = 60  # for the others to exit by themselves once one process has failed

FLAGS = flags.FlagValues()
flags.DEFINE_integer("processes", 2, "Processes of the run.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer("cpu_devices", 1, "CPU devices of each process, without GPUs.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer("restarts", 3, "Restarts after an interruption.", lower_bound=0, flag_values=FLAGS)
flags.DEFINE_bool("dry_run", False, "Print the commands and start nothing.", flag_values=FLAGS)


def launch(argv: Sequence[str]) -> int:
    """Runs the command line above; returns the exit code of the run."""
    rest, workdir = command.parse_run(FLAGS, argv, __doc__)
    line = [*processes.MAIN, *rest]
    envs = environments(FLAGS.processes, FLAGS.cpu_devices, gpus())
    if FLAGS.dry_run:
        for env in envs:
            print(" ".join(f"{k}={shlex.quote(v)}" for k, v in env.items()), shlex.join(line))
        return 0
    group: list[subprocess.Popen] = []
    with processes.Relay(lambda: group) as relay:
        for left in range(FLAGS.restarts, -1, -1):
            logs = [None, *(workdir / "logs" / f"process-{i}.log" for i in range(1, len(envs)))]
            group[:] = [processes.start(line, env, log) for env, log in zip(envs, logs, strict=True)]
            if relay.requested:  # while they were being started
                for process in group:
                    process.terminate()
            code = outcome(processes.wait(group, GRACE_SECONDS), logs)
            if code != Preempted.exit_code or relay.requested:
                return code
            say(
                f"the run was interrupted; {f'restarting, {left} restarts left' if left else 'start it again to resume'}"
            )
            envs = environments(FLAGS.processes, FLAGS.cpu_devices, gpus())
    return Preempted.exit_code


def outcome(codes: Sequence[int], logs: Sequence[Path | None]) -> int:
    """The exit code of a run from those of its processes; shows the end of the logs that say why it failed."""
    if not any(codes):
        return 0
    known = [code for code in codes if code in command.FINAL]
    interrupted = any(code < 0 or code == Preempted.exit_code for code in codes)
    if not codes[0] or codes[0] < 0 or codes[0] in (1, Preempted.exit_code):
        for number, (code, log) in enumerate(zip(codes, logs, strict=True)):
            if log and code and code != Preempted.exit_code:
                end = log.read_text(errors="replace").splitlines()[-5:]
                for line in (f"process {number} exited with {code}; {log} ends with", *end):
                    say(line)
    if known:
        return known[0]
    return Preempted.exit_code if interrupted else next(code for code in codes if code)


def gpus() -> list[str]:
    """The GPUs that may be used, as named in CUDA_VISIBLE_DEVICES."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [gpu for gpu in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if gpu]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True).stdout  # noqa: S607 - the one on PATH
    except (OSError, subprocess.CalledProcessError):
        return []
    return [str(i) for i, line in enumerate(listed.splitlines()) if line.startswith("GPU ")]


def environments(count: int, cpu_devices: int, gpus: Sequence[str]) -> list[dict[str, str]]:
    """Variables that each process of a run adds to its environment. Raises `UserError` for GPUs that do not divide evenly."""
    if len(gpus) % count:
        raise UserError(
            f"--processes={count}: {len(gpus)} GPUs cannot be shared evenly; set CUDA_VISIBLE_DEVICES to fewer"
        )
    address = f"127.0.0.1:{free_port()}"
    envs = []
    for number in range(count):
        env = {
            "JAX_COORDINATOR_ADDRESS": address,
            "JAX_COORDINATOR_BIND_ADDRESS": address,  # not reached from other machines
            "JAX_NUM_PROCESSES": str(count),
            "JAX_PROCESS_ID": str(number),
            "NIN_JAX_RENDEZVOUS_SECONDS": os.environ.get("NIN_JAX_RENDEZVOUS_SECONDS", str(RENDEZVOUS_SECONDS)),
        }
        if gpus:
            share = len(gpus) // count
            env["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[number * share : (number + 1) * share])
        elif cpu_devices > 1:
            forced = f"--xla_force_host_platform_device_count={cpu_devices}"
            env["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {forced}".strip()
            # Each CPU device needs a thread of its own while it waits for the others.
            env["NPROC"] = str(max(16, 2 * cpu_devices))
        envs.append(env)
    return envs


def free_port() -> int:
    """A port of this machine that nobody listens on; below those that Linux hands out, which others may get meanwhile."""
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        with socket.socket() as s, contextlib.suppress(OSError):
            s.bind(("127.0.0.1", port))
            return port


if __name__ == "__main__":
    command.run(launch)
