"""What runs the trials of a sweep: this machine's own queue, or submitit, on Slurm or without.

An engine runs a list of trials, or the workers of a search, and returns their exit codes. Where it is interrupted, so are
they, and what they have done stays in their run directories.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from launch import processes, search
from launch import trial as trials
from launch.trial import Trial
from nin_jax.console import say
from nin_jax.errors import Preempted, UserError


class Engine(Protocol):
    """What runs trials."""

    def run(self, plan: Sequence[Trial], directory: Path, on_change: Callable[[], None]) -> list[int]:
        """Runs every trial to its end; `on_change` is called after each. Returns their exit codes."""
        ...

    def work(self, directory: Path, count: int, on_change: Callable[[], None]) -> list[int]:
        """Runs workers of the search in `directory` until there are `count` trials. Returns their exit codes."""
        ...


class Local:
    """One trial in each slot, the next when one ends.

    Args:
      slots: what each slot adds to the environment: the GPU that it is.
    """

    def __init__(self, slots: Sequence[Mapping[str, str]]):
        self.slots = list(slots)

    def run(self, plan: Sequence[Trial], directory: Path, on_change: Callable[[], None]) -> list[int]:
        codes: dict[int, int] = {}
        waiting, free = list(enumerate(plan)), list(self.slots)
        running: dict[int, tuple[trials.Process, Mapping[str, str]]] = {}
        with processes.Relay(lambda: [p.process for p, _ in running.values() if p.process]) as relay:
            while running or (waiting and not relay.requested):
                while waiting and free and not relay.requested:
                    number, trial = waiting.pop(0)
                    slot = free.pop(0)
                    running[number] = trials.Process(trial, directory, slot), slot
                for number, (process, slot) in list(running.items()):
                    process.stopped = process.stopped or relay.requested
                    code = process.poll()
                    if code is not None:
                        codes[number] = code
                        free.append(slot)
                        del running[number]
                        on_change()
                time.sleep(0.1)
        return [codes.get(number, Preempted.exit_code) for number in range(len(plan))]

    def work(self, directory: Path, count: int, on_change: Callable[[], None]) -> list[int]:
        line = [sys.executable, "-m", "launch.search", str(directory)]
        workers = [processes.start(line, slot, directory / f"worker-{i}.log") for i, slot in enumerate(self.slots)]
        with processes.Relay(lambda: workers):
            while any(worker.poll() is None for worker in workers):
                time.sleep(1)
                on_change()
        return [Preempted.exit_code if w.returncode < 0 else w.returncode for w in workers]


class Submitit:
    """Jobs of a Slurm array, or processes of submitit's local executor.

    Args:
      kind: "slurm" or "processes".
      parameters: of submitit's executor, such as {"slurm_partition": "gpu", "slurm_gpus_per_node": 1}.
      workers: how many jobs may run at a time; of a search, how many there are.
    """

    def __init__(self, kind: str, parameters: Mapping[str, Any], workers: int | None):
        self.kind, self.parameters, self.workers = kind, dict(parameters), workers

    def run(self, plan: Sequence[Trial], directory: Path, on_change: Callable[[], None]) -> list[int]:
        one = functools.partial(trials.run, directory=directory.absolute())
        return self._wait(directory, one, plan, on_change)

    def work(self, directory: Path, count: int, on_change: Callable[[], None]) -> list[int]:
        return self._wait(
            directory,
            functools.partial(_search, directory.absolute()),
            list(range(self.workers or (min(count, 4) if self.kind == "slurm" else 1))),
            on_change,
        )

    def _wait(
        self, directory: Path, f: Callable[[Any], int], items: Sequence[Any], on_change: Callable[[], None]
    ) -> list[int]:
        if not items:
            return []
        try:
            import submitit
        except ImportError as error:
            raise UserError('this engine needs submitit: python -m pip install -e ".[launch]"') from error
        cluster = "slurm" if self.kind == "slurm" else "local"
        if cluster == "slurm":
            parallel = {"slurm_array_parallelism": self.workers} if self.workers else {}
            defaults = {"slurm_additional_parameters": {"requeue": True}, "timeout_min": 1440}
            parameters = {**defaults, **parallel, **self.parameters}
        else:
            parameters = {"timeout_min": 60 * 24 * 365}
        try:
            executor = submitit.AutoExecutor(folder=directory / "submitit", cluster=cluster)
            executor.update_parameters(name=f"sweep-{directory.name}", **parameters)
            jobs = executor.map_array(_Resumable(f), items) if cluster == "slurm" else []
        except (
            RuntimeError,
            ValueError,
            TypeError,
            NameError,
        ) as error:  # what submitit raises of parameters and of sbatch
            raise UserError(f"--engine={self.kind}: {error}") from error
        say(f"{len(items)} jobs; their output is in {directory / 'submitit'}")
        done: set[int] = set()
        with processes.Relay(lambda: []) as relay:
            while len(done) < len(items):
                # Submitit's own processes all start at once.
                while len(jobs) < len(items) and len(jobs) - len(done) < (self.workers or 1):
                    jobs.append(executor.submit(_Resumable(f), items[len(jobs)]))
                for i, job in enumerate(jobs):
                    if i not in done and job.done():
                        done.add(i)
                        on_change()
                if relay.requested:
                    for job in jobs:
                        job.cancel(check=False)
                    return [Preempted.exit_code] * len(items)
                time.sleep(0.5)
        return [self._code(job) for job in jobs]

    def _code(self, job: Any) -> int:
        try:
            return job.result()
        except Exception as error:  # submitit raises what the job raised, or its own when it has left nothing
            say(f"job {job.job_id} has failed: {str(error).splitlines()[-1] if str(error) else error!r}")
            return Preempted.exit_code


class _Resumable:
    """A function of an item that submitit may interrupt, before its time is over or for another job, and put back into the
    queue.
    """

    def __init__(self, f: Callable[[Any], int]):
        self.f = f

    def __call__(self, item: Any) -> int:
        return self.f(item)

    def checkpoint(self, *arguments: Any) -> Any:
        import signal

        import submitit

        signal.raise_signal(signal.SIGTERM)  # the trial saves and goes
        return submitit.helpers.DelayedSubmission(self, *arguments)


def _search(directory: Path, _: int) -> int:
    return search.outcome(directory)
