"""The training loop.

Step n means n finished updates: the row, the evaluation and the checkpoint labelled n are all of that state. At the end
of an epoch the order is: row of training, evaluation with its row, checkpoint. Then, as before every dispatch of
updates, the run is asked whether it is to stop; if so, it saves a checkpoint and ends. Otherwise the next updates are
dispatched. A row is on disk before the checkpoint of its step, and rows after the checkpoint that a run resumes from are
dropped, so each row stands in metrics.jsonl once.
"""

from __future__ import annotations

import contextlib
import enum
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nin_jax.config import Config
from nin_jax.console import say
from nin_jax.devices import processes
from nin_jax.devices.mesh import compiled_in_32_bits, host
from nin_jax.devices.signals import Stop
from nin_jax.devices.watchdog import Watchdog
from nin_jax.errors import Diverged, Preempted
from nin_jax.runs import rollback
from nin_jax.runs.clock import Clock
from nin_jax.runs.directory import claim, finished
from nin_jax.runs.progress import Progress
from nin_jax.runs.record import eval_name
from nin_jax.training import health
from nin_jax.training.build import Run
from nin_jax.training.start import Start, matched, start
from nin_jax.training.state import TrainState


class Event(enum.Enum):
    """The moments of a run that a hook is told of."""

    AFTER_UPDATES = enum.auto()  # of a dispatch, when their metrics have been read
    BEFORE_ROW = enum.auto()
    BEFORE_EVALUATION = enum.auto()
    BEFORE_SAVE = enum.auto()
    BEFORE_SUMMARY = enum.auto()


Hook = Callable[[Event, int], None]


def train(config: Config, workdir: Path, hook: Hook = lambda event, step: None) -> dict[str, Any]:
    """Trains to the end of the config's epochs, from the newest checkpoint in `workdir` if there is one.

    Args:
      config: checked.
      workdir: the run directory.
      hook: called with each event and its step, on every process.

    Returns the summary, which is also in summary.json. Raises `UserError`, `Diverged`, `StorageFailed`, `Preempted`.
    """
    with compiled_in_32_bits(), Stop() as stop, Watchdog(config.watchdog_seconds) as watchdog:
        run = Run(config)
        for line in run.info.found:
            say(line)
        with contextlib.ExitStack() as held:
            processes.from_first(lambda: held.enter_context(claim(workdir, config)))
            processes.check_shared(workdir)
            if done := processes.from_first(lambda: finished(workdir, config)):
                say(f"{workdir} is done: test error {done['test_error_pct']:.2f} %")
                return done
            run = matched(run, workdir)
            while True:
                try:
                    with contextlib.ExitStack() as opened:
                        return loop(*start(run, workdir, stop, watchdog.beat, opened), stop, watchdog.beat, hook)
                except Diverged as diverged:
                    rollback.go_back(config, workdir, diverged)


def loop(
    s: Start, step: int, state: TrainState, progress: Progress, stop: Stop, beat: Callable[[], None], hook: Hook
) -> dict[str, Any]:
    """Trains from `step`, `state` and `progress` to the last update, and returns the summary."""
    c, programs, split = s.config, s.programs, eval_name(s.config.eval_split)
    clock, images_per_s = Clock(dict(progress.seconds)), 0.0
    evaluation: dict[str, float] | None = None

    def stopped() -> bool:
        beat()  # everything before this is finished
        return stop()

    def save(metrics: dict[str, float] | None = None, *, wait: bool = False) -> None:
        hook(Event.BEFORE_SAVE, step)
        s.record.check()
        if not programs.finite(state):  # such parameters are never saved
            raise Diverged(f"the parameters after update {step} are not finite", step)
        s.checkpoints.save(step, state, progress.notes(clock.seconds, c, s.identity, s.info), metrics, wait=wait)
        beat()

    def summarize(status: str) -> dict[str, Any]:
        hook(Event.BEFORE_SUMMARY, step)
        s.record.write_csv()
        return s.summary.write(status, step, evaluation, clock.seconds)

    def record(row: dict[str, Any]) -> None:
        if s.record.write(row) and processes.is_first():
            s.display.row(row)

    def read(last: int, count: int, metrics: Any) -> None:
        nonlocal progress, images_per_s
        progress = health.absorb(progress, last, count, host(metrics))
        images_per_s = s.display.finished(last)
        hook(Event.AFTER_UPDATES, last)

    try:
        while True:
            epoch, place = divmod(step, s.epoch_updates)
            if step and not place:
                final, evaluation = step == s.last, None
                row = {"step": step, "epoch": epoch, "learning_rate": programs.learning_rate(state)}
                if progress.updates:
                    hook(Event.BEFORE_ROW, step)
                    record(row | {"split": "train"} | progress.means() | {"images_per_s": images_per_s})
                    progress = progress.after_row()
                health.warn(progress)

                due = final or (epoch % c.eval_every_epochs == 0 and (step, split) not in s.record.done)
                if due:
                    hook(Event.BEFORE_EVALUATION, step)
                    with clock.time("compile"):
                        evaluator = programs.evaluation()
                    began = time.perf_counter()
                    with clock.time("eval"):
                        evaluation = evaluator([state.variables], stopped)
                if evaluation:
                    if not math.isfinite(evaluation["loss"]):
                        raise Diverged(f"the loss of the evaluation after update {step} is not finite", step)
                    means = {k: v for k, v in evaluation.items() if k != "examples"}
                    speed = evaluation["examples"] / (time.perf_counter() - began)
                    record(row | {"split": split} | means | {"images_per_s": speed})
                s.display.end_epoch()

                if (epoch % c.checkpoint_every_epochs == 0 or final) and (evaluation or not due):
                    save({"error_pct": evaluation["error_pct"]} if evaluation else None, wait=final)

            if stopped():
                if not step:  # the directory still belongs to nobody
                    raise Preempted(f"{stop.requested} before the first update: nothing to save; start again")
                save(wait=True)
                saved = f"saved step {step} of {s.last} in {s.workdir}"
                raise Preempted(f"{stop.requested}: {saved}; start again to resume")
            if step == s.last:
                s.checkpoints.wait()
                return summarize("done")

            end, waiting = step - place + s.epoch_updates, None
            with clock.time("compile"):  # only the time that this thread waits for the compiler
                programs.updates(1)
                processes.meet()
            s.display.begin_epoch(epoch + 1, step)
            with clock.time("train"):
                while step < end and not stopped():
                    count = min(s.source.updates_per_dispatch, end - step)
                    state, metrics = programs.updates(count)(state, s.source.at(step))
                    step += count
                    if waiting:  # read while the next updates run: an accelerator never waits for the host
                        read(*waiting)
                    waiting = step, count, metrics
                if waiting:
                    read(*waiting)
    except Diverged:
        evaluation = None  # it was of an earlier state
        summarize("diverged")
        raise
