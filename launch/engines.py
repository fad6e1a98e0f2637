"""What runs the trials of a sweep: this machine's own queue, or submitit, on Slurm or without.

An engine runs a list of trials, or the workers of a search, and returns their exit codes. When it is interrupted, so are
they; what they have done stays in their run directories.
"""

from __future__ import annotations

import functools
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from launch import processes, search
from launch import trial as trials
from launch.trial import Trial
from nin_jax.console import say
from nin_jax.errors import Preempted, UserError


class Local:
    """One trial in each slot, the next when one ends.

    Args:
      slots: what each slot adds to the environment, such as the GPU that it stands for.
    """

    def __init__(self, slots: Sequence[Mapping[str, str]]):
        self.slots = slots

    def run(self, plan: Sequence[Trial], directory: Path, on_change: Callable[[], None]) -> list[int]:
        """Runs every trial to its end; `on_change` is called after each. Returns their exit codes."""
        return trials.run(plan, directory, self.slots, on_change)

    def work(self, directory: Path, count: int, on_change: Callable[[], None]) -> list[int]:
        """Runs workers of the search in `directory` until there are `count` trials. Returns their exit codes."""
        line = [sys.executable, "-m", "launch.search", str(directory)]
        workers = [processes.start(line, slot, directory / f"worker-{i}.log") for i, slot in enumerate(self.slots)]
        with processes.Relay(lambda: workers):
            while any(worker.poll() is None for worker in workers):
                time.sleep(1)
                on_change()
        return [Preempted.exit_code if w.returncode < 0 else w.returncode for w in workers]


class Submitit:
    """Jobs of a Slurm array, or processes of submitit's local executor; `run` and `work` as those of `Local`.

    Args:
      kind: "slurm" or "processes".
      parameters: of submitit's executor, such as {"slurm_partition": "gpu", "slurm_gpus_per_node": 1}.
      workers: how many jobs may run at a time; of a search, how many there are.
    """

    def __init__(self, kind: str, parameters: Mapping[str, Any], workers: int | None):
        self.kind, self.parameters, self.workers = kind, dict(parameters), workers

    def run(self, plan: Sequence[Trial], directory: Path, on_change: Callable[[], None]) -> list[int]:
        return self._map(functools.partial(_run, directory.absolute()), plan, directory, on_change)

    def work(self, directory: Path, count: int, on_change: Callable[[], None]) -> list[int]:
        workers = self.workers or (min(count, 4) if self.kind == "slurm" else 1)
        return self._map(functools.partial(_work, directory.absolute()), range(workers), directory, on_change)

    def _map(
        self, f: Callable[[Any], int], items: Sequence[Any], directory: Path, on_change: Callable[[], None]
    ) -> list[int]:
        """The results of f for each item, each computed by a job."""
        if not items:
            return []
        try:
            import submitit
        except ImportError as error:
            raise UserError('this engine needs submitit: python -m pip install -e ".[launch]"') from error
        slurm = self.kind == "slurm"
        parameters: dict[str, Any] = {"timeout_min": 60 * 24 * 365}
        if slurm:
            parallel = {"slurm_array_parallelism": self.workers} if self.workers else {}
            defaults = {"slurm_additional_parameters": {"requeue": True}, "timeout_min": 1440}
            parameters = {**defaults, **parallel, **self.parameters}
        try:
            executor = submitit.AutoExecutor(folder=directory / "submitit", cluster="slurm" if slurm else "local")
            executor.update_parameters(name=f"sweep-{directory.name}", **parameters)
            jobs = executor.map_array(_Resumable(f), items) if slurm else []
        except (RuntimeError, ValueError, TypeError, NameError) as error:  # of submitit's parameters, or from sbatch
            raise UserError(f"--engine={self.kind}: {error}") from error
        say(f"{len(items)} jobs; their output is in {directory / 'submitit'}")
        done: set[int] = set()
        with processes.Relay(lambda: []) as relay:
            while len(done) < len(items):
                # submitit's local executor would start all of them at once
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
        return [_code(job) for job in jobs]


def _code(job: Any) -> int:
    """The exit code that a job returned."""
    try:
        return job.result()
    except Exception as error:  # what the job raised, or submitit's own where it left no result
        say(f"job {job.job_id} failed: {str(error).splitlines()[-1] if str(error) else error!r}")
        return Preempted.exit_code


class _Resumable:
    """A function of an item that submitit may interrupt, at its time limit or by preemption, and requeue."""

    def __init__(self, f: Callable[[Any], int]):
        self.f = f

    def __call__(self, item: Any) -> int:
        return self.f(item)

    def checkpoint(self, *arguments: Any) -> Any:
        import submitit

        signal.raise_signal(signal.SIGTERM)  # the trial saves a checkpoint and exits
        return submitit.helpers.DelayedSubmission(self, *arguments)


def _run(directory: Path, trial: Trial) -> int:
    return trials.run([trial], directory)[0]


def _work(directory: Path, _: int) -> int:
    return search.outcome(directory)
