"""Everything before the first update of a run: data, fitted preprocessing, programs, initial or restored state."""

from __future__ import annotations

import contextlib
import dataclasses
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nin_jax.config import Config
from nin_jax.console import bar, say
from nin_jax.data.source import TrainSource
from nin_jax.data.splits import Info, shared
from nin_jax.devices import processes
from nin_jax.devices.mesh import host, replicate, replicated_like
from nin_jax.devices.replicas import compile_for_once
from nin_jax.devices.signals import Stop
from nin_jax.errors import StorageFailed, UserError
from nin_jax.runs import rollback
from nin_jax.runs.checkpoint import Checkpoints
from nin_jax.runs.directory import check_config
from nin_jax.runs.display import Display
from nin_jax.runs.progress import Progress
from nin_jax.runs.record import Record, eval_name
from nin_jax.runs.summary import Summary
from nin_jax.training import optim
from nin_jax.training.build import Run
from nin_jax.training.evaluate import Evaluator, trained_on
from nin_jax.training.load import by_class, merge, trained_network
from nin_jax.training.programs import Programs
from nin_jax.training.state import Recipe, TrainState, init_state, state_of

PIXELS = ", pixels "  # older checkpoints do not note them


@dataclasses.dataclass(frozen=True)
class Start:
    """The fixed parts of one start of a run.

    Attributes:
      config, workdir: of the run.
      info: facts of the data set.
      epoch_updates, last: the updates of an epoch, and of the run.
      identity: what a checkpoint's training examples are known by.
      source, programs: the training batches, and the compiled functions.
      checkpoints, record, summary: what is written.
      display: what is shown.
    """

    config: Config
    workdir: Path
    info: Info
    epoch_updates: int
    last: int
    identity: str
    source: TrainSource
    programs: Programs
    checkpoints: Checkpoints
    record: Record
    summary: Summary
    display: Display


def start(
    run: Run, workdir: Path, stop: Stop, beat: Callable[[], None], opened: contextlib.ExitStack
) -> tuple[Start, int, TrainState, Progress]:
    """Opens a run; `opened` closes it again.

    Returns its parts; and the step, state and progress of the newest checkpoint, or of a new run. Raises `UserError` if
    the training split is smaller than a batch, or if the checkpoint is of another run.
    """
    c, mesh = run.config, run.mesh
    data, test = run.load(c.train_split), run.load(c.eval_split)
    if both := shared(c.train_split, c.eval_split, run.data):
        say(f"warning: {both:,} of the examples of eval_split={c.eval_split!r} are in train_split={c.train_split!r}")
    source = run.training(data)
    opened.callback(source.close)
    epoch_updates = source.examples // c.batch_size
    if not epoch_updates:
        raise UserError(
            f"train_split={c.train_split!r} has {source.examples} examples, fewer than batch_size={c.batch_size}"
        )
    last, identity = c.epochs * epoch_updates, identify(data)
    rollbacks = processes.from_first(lambda: rollback.read(workdir))
    scale = rollback.factor(rollbacks)
    recipe = run.recipe(epoch_updates, scale)
    stats = run.fitted(workdir, write=True, train=data)
    beat()
    evaluator = Evaluator([recipe], mesh, c.mapper, run.evaluation(test), [stats])
    make = jax.jit(lambda seed: init_state(recipe, seed, run.info.image_shape)).trace(np.uint32(c.seed))
    like: TrainState = replicated_like(make.out_info, mesh)

    stop.can_save = True  # a signal that interrupts a restore would make a good checkpoint look broken
    seed, schedule = replicate(jnp.uint32(c.seed), mesh), optim.schedule(c, epoch_updates, scale)
    programs = Programs(recipe, source, evaluator, like, stats, seed, schedule, mesh, c.mapper)
    opened.callback(programs.close)  # they compile while this thread restores or initialises the state
    checkpoints = Checkpoints(workdir, c.keep)
    opened.callback(_close, checkpoints)
    found = checkpoints.restore(like)
    if found:
        step, state, notes = found
        check_config(notes.get("config"), c, f"checkpoint {step} in {workdir}")
        before = notes.get("data", identity)
        if before.partition(PIXELS)[0] != identity.partition(PIXELS)[0]:
            raise UserError(
                f"--workdir={workdir} holds a run on other training examples ({before}; now {identity}); choose "
                "another --workdir, or bring the data back"
            )
        if PIXELS in before and before != identity:  # a new decoder may round otherwise, so the run is not refused
            say(f"warning: the pixels of training images have changed since the checkpoint ({before}; now {identity})")
        say(f"resuming from step {step} of {last} in {workdir}")
    else:
        first = compile_for_once(make.lower())(np.uint32(c.seed))
        step, state, notes = 0, processes.placed_like(with_weights(run, first, recipe), like), {}
    source.start(step)
    record = Record(workdir, step)
    opened.callback(record.close)
    params = sum(p.size for p in jax.tree.leaves(like.params))
    left_out = {"train": run.left_out[c.train_split], eval_name(c.eval_split): run.left_out[c.eval_split]}
    summary = Summary(workdir, c, mesh, epoch_updates, params, left_out, run.info.counts, rollbacks)
    update = opened.enter_context(bar("training", last, step))
    display = Display(update, eval_name(c.eval_split), c.epochs, last, c.batch_size)
    opened.callback(display.end_epoch)  # a row that waits for an evaluation that did not end
    facts = c, workdir, run.info, epoch_updates, last, identity
    made = Start(*facts, source, programs, checkpoints, record, summary, display)
    return made, step, state, Progress.of(notes)


def _close(checkpoints: Checkpoints) -> None:
    with contextlib.suppress(StorageFailed):  # it was raised where it happened; here it would hide the reason
        checkpoints.close()


def identify(data: Any) -> str:
    """A fingerprint of the training examples, which a resumed run must match but for what stands behind `PIXELS`."""
    if not isinstance(data, tuple):
        return f"{len(data)} images"
    pixels, labels = (zlib.crc32(np.ascontiguousarray(part).data) for part in data)
    return f"{len(data[1])} examples, labels {labels:08x}{PIXELS}{pixels:08x}"


def matched(run: Run, workdir: Path) -> Run:
    """The run, with the classes in the order of the checkpoints in `workdir`."""
    trained = trained_on(workdir)
    if trained is None:
        return run
    ours = Run(run.config, trained)
    for line in ours.info.found[len(run.info.found) :]:  # the rest has been printed
        say(line)
    return ours


def with_weights(run: Run, state: TrainState, recipe: Recipe) -> TrainState:
    """The state before the first update, with the weights of `init_from` instead of random ones wherever they fit."""
    source = run.config.init_from
    if source is None:
        return state
    trained, theirs = trained_network(source)
    variables, kept, unused = merge(state.current, by_class(host(theirs), trained, run))
    if len(kept) == len(jax.tree.leaves(state.current)):
        raise UserError(f"init_from={source!r}: no parameter of that network fits this one")
    say(f"weights of {source}; newly initialised: {', '.join(kept) or 'none'}; not used: {', '.join(unused) or 'none'}")
    return state_of(recipe, **variables)
