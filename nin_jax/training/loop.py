"""The loop, and nothing else.

Step n means n finished updates: the row, the evaluation and the checkpoint labelled n are all of that state. At each
step the order is: row, evaluation, checkpoint, next dispatch. A row is on disk before the checkpoint of its step, and
rows after the checkpoint that a run goes on from are dropped, so each row stands in metrics.jsonl once.
"""

from __future__ import annotations

import contextlib
import math
import time
import zlib
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nin_jax import config as config_lib
from nin_jax import storage
from nin_jax.config import Config
from nin_jax.console import progress, say
from nin_jax.devices import processes
from nin_jax.devices.mesh import host, replicate, replicated_like
from nin_jax.devices.replicas import compile_for_once, compile_replicas
from nin_jax.devices.signals import Stop
from nin_jax.devices.watchdog import Watchdog
from nin_jax.errors import Diverged, Preempted, StorageFailed, UserError
from nin_jax.runs import rollback
from nin_jax.runs.checkpoint import Checkpoints
from nin_jax.runs.clock import Clock
from nin_jax.runs.directory import check_config, claim, finished
from nin_jax.runs.provenance import commit, versions
from nin_jax.runs.record import Record
from nin_jax.training import optim, step
from nin_jax.training.build import Run
from nin_jax.training.evaluate import Evaluator
from nin_jax.training.load import merge, variables_of

DEAD_AFTER = 50  # updates in a row with a constant logit; a ReLU on the class maps passes no gradient then, for good


def train(config: Config, workdir: Path) -> dict[str, Any]:
    """Trains to the end of the config's epochs, from the newest checkpoint in `workdir` if there is one.

    Returns the summary, which is also in summary.json. Raises `UserError`, `Diverged`, `StorageFailed`, `Preempted`.
    """
    with Stop() as stop, Watchdog(config.watchdog_seconds) as watchdog:
        run = Run(config)
        with contextlib.ExitStack() as held:
            processes.from_first(lambda: held.enter_context(claim(workdir, config)))
            processes.check_shared(workdir)
            done = processes.from_first(lambda: finished(workdir, config))
            if done:
                say(f"{workdir} is done: test error {done['test_error_pct']:.2f} %")
                return done
            while True:
                try:
                    return _Loop(run, workdir, stop, watchdog).run()
                except Diverged as diverged:
                    rollback.go_back(config, workdir, diverged)


class _Loop:
    """One start of a run."""

    def __init__(self, run: Run, workdir: Path, stop: Stop, watchdog: Watchdog):
        self.config, self.workdir, self.stop, self.watchdog = run.config, workdir, stop, watchdog
        self.mesh, self.classes = run.mesh, run.info.classes
        c = self.config
        data = run.load(c.train_split)
        test = run.load(c.eval_split)
        self.batches = run.training(data)
        examples = self.batches.examples
        self.epoch_updates = examples // c.batch_size
        if not self.epoch_updates:
            raise UserError(
                f"train_split={c.train_split!r} has {examples} examples, fewer than batch_size={c.batch_size}"
            )
        self.last = c.epochs * self.epoch_updates
        self.bad_records = {"train": run.left_out[c.train_split], eval_name(c.eval_split): run.left_out[c.eval_split]}
        self.identity = self._identify(data)
        self.rollbacks = processes.from_first(lambda: rollback.read(workdir))
        scale = rollback.factor(self.rollbacks)
        self.recipe = run.recipe(self.epoch_updates, scale)
        self.stats = run.fitted(workdir, write=True, train=data)
        self.watchdog.beat()
        self.evaluator = Evaluator([self.recipe], self.mesh, c.mapper, run.evaluation(test), [self.stats])
        self.seed = replicate(jnp.uint32(c.seed), self.mesh)
        make = jax.jit(lambda seed: step.init_state(self.recipe, seed, run.info.image_shape)).trace(np.uint32(c.seed))
        self.shapes = replicated_like(make.out_info, self.mesh)
        self.stop.can_save = True  # a signal that cut a restore short would make a good checkpoint look broken
        # One thread compiles, the update first and then the evaluation, while this one restores or makes the state.
        self.compiler = ThreadPoolExecutor(1)
        self.compiled: dict[int, Future[Any]] = {}
        self._compile(self.batches.dispatch(self.epoch_updates))
        self.evaluating = self.compiler.submit(self.evaluator.compile, [self.shapes.variables])

        self.checkpoints = Checkpoints(workdir, c.keep)
        found = self.checkpoints.restore(self.shapes)
        if found:
            self.step, self.state, notes = found
            check_config(notes.get("config"), self.config, f"checkpoint {self.step} in {workdir}")
            if notes.get("data", self.identity) != self.identity:
                raise UserError(
                    f"--workdir={workdir} holds a run on other training examples ({notes['data']}; now "
                    f"{self.identity}); choose another --workdir, or bring the data back"
                )
            say(f"going on from step {self.step} of {self.last} in {workdir}")
        else:
            first = self._started(compile_for_once(make.lower())(np.uint32(c.seed)))
            self.step, self.state, notes = 0, processes.placed_like(first, self.shapes), {}
        schedule = optim.schedule(c, self.epoch_updates, scale)
        rate = jax.jit(lambda step, opt_state: schedule(step) * optim.plateau_scale(opt_state))
        self.rate = rate.lower(np.int32(0), self.shapes.opt_state).compile()  # now, while the other thread compiles
        self.batches.start(self.step)
        self.params = sum(p.size for p in jax.tree.leaves(self.state.params))
        self.clock = Clock(notes.get("seconds", {}))
        self.meter = notes.get("meter") or {"loss": 0.0, "error": 0.0, "updates": 0}
        self.constant_for = np.zeros(self.classes)  # updates in a row that each class has had a constant logit
        self.recorded = {(step, split) for step, split in processes.from_first(self._open_record)}
        self.images_per_s = 0.0
        self.evaluation: dict[str, float] | None = None

    def _started(self, state: step.TrainState) -> step.TrainState:
        """The state before the first update, with the weights of `init_from` in place of random ones."""
        source = self.config.init_from
        if source is None:
            return state
        theirs = host(variables_of(Path(source).expanduser()))
        variables, kept, unused = merge(state.current, theirs)
        if len(kept) == len(jax.tree.leaves(state.current)):
            raise UserError(f"init_from={source!r}: no parameter of that run fits this network")
        say(f"weights of {source}; of their own: {', '.join(kept) or 'none'}; not used: {', '.join(unused) or 'none'}")
        return step.state_of(self.recipe, **variables)

    def _open_record(self) -> list[tuple[int, str]]:
        self.record = Record(self.workdir, self.step)
        return sorted(self.record.done)

    def _write(self, row: dict[str, Any]) -> None:
        """Adds a row to the record, unless it has it."""
        if (row["step"], row["split"]) not in self.recorded:
            processes.from_first(lambda: self.record.write(row))
            self.recorded.add((row["step"], row["split"]))

    def _identify(self, data: Any) -> str:
        """What a resumed run's training examples are known by; says which classes have none."""
        if not isinstance(data, tuple):
            return f"{len(data)} pictures"
        labels = data[1]
        empty = np.setdiff1d(np.arange(self.classes), labels).tolist()
        if empty:
            split = self.config.train_split
            say(f"warning: {split} has no example of {len(empty)} of {self.classes} classes: {empty[:20]}")
        return f"{len(labels)} examples, labels {zlib.crc32(labels.tobytes()):08x}"

    def run(self) -> dict[str, Any]:
        """Goes to the end; whatever ends it sooner, files are closed and what was being saved is saved."""
        try:
            while True:
                if self.step % self.epoch_updates == 0 and self.step:
                    self._events()
                if self._stopped():
                    self._preempted()
                if self.step == self.last:
                    break
                self._epoch()
            return self._summary("done")
        except Diverged:
            self._summary("diverged")
            raise
        finally:
            self.compiler.shutdown(cancel_futures=True)
            self.batches.close()
            with contextlib.suppress(StorageFailed):  # it was raised where it happened; here it would hide the reason
                self.checkpoints.close()
            if processes.is_first():
                self.record.close()

    def _stopped(self) -> bool:
        """Whether a stop was asked for; that this is asked shows that what came before was finished."""
        self.watchdog.beat()
        return self.stop()

    def _epoch(self) -> None:
        """Updates to the end of the epoch, or to a signal."""
        end = (self.step // self.epoch_updates + 1) * self.epoch_updates
        length = self.batches.dispatch(self.epoch_updates)
        lengths = {min(length, end - self.step), (end - self.step) % length or length}
        for n in lengths:
            self._compile(n)
        with self.clock.time("compile"):  # what it is waited for
            compiled = {n: self.compiled[n].result() for n in lengths}
            processes.meet()
        begin, start, waiting, said = self.step, time.perf_counter(), None, time.perf_counter()
        with progress() as bar, self.clock.time("train"):
            task = bar.add_task(
                f"epoch {end // self.epoch_updates} of {self.config.epochs}", total=self.last, completed=begin
            )
            while self.step < end and not self._stopped():
                n = min(length, end - self.step)
                self.state, metrics = compiled[n](self.state, self.batches.at(self.step), self.stats, self.seed)
                self.step += n
                # The metrics of the dispatch before are read while this one runs: an accelerator never waits for the host.
                if waiting is not None:
                    self._absorb(*waiting)
                waiting = self.step, metrics
                seconds = time.perf_counter() - start
                self.images_per_s = (self.step - begin) * self.config.batch_size / seconds
                bar.update(task, completed=self.step, images_per_s=self.images_per_s)
                if bar.disable and time.perf_counter() - said > 30:
                    said = time.perf_counter()
                    left = (self.last - self.step) * self.config.batch_size / self.images_per_s
                    say(f"step {self.step} of {self.last}, {self.images_per_s:,.0f} images/s, {left / 60:.0f} min left")
            if waiting is not None:
                self._absorb(*waiting)
                self.images_per_s = (self.step - begin) * self.config.batch_size / (time.perf_counter() - start)

    def _compile(self, length: int) -> None:
        """Has `length` updates compiled, once."""
        if length not in self.compiled:
            self.compiled[length] = self.compiler.submit(
                compile_replicas,
                step.train_steps(self.recipe, length),
                (self.shapes, self.batches.like, self.stats, self.seed),
                self.mesh,
                self.config.mapper,
                split=(False, self.batches.split, False, False),
                donate=(0,),
            )

    def _absorb(self, last: int, metrics: Any) -> None:
        """Adds the metrics of the updates up to `last` to the meter, in order, and looks whether the network lives."""
        metrics = host(metrics)
        for i, (loss, error, constant) in enumerate(
            zip(*(metrics[k] for k in ("loss", "error", "constant")), strict=True)
        ):
            update = last - len(metrics["loss"]) + i + 1
            if not math.isfinite(loss):
                raise Diverged(
                    f"the loss is {loss} at update {update}; a lower optimizer.learning_rate, optimizer.clip_norm=0.1 or "
                    "schedule.warmup_epochs=1 helps",
                    update,
                )
            self.constant_for = (self.constant_for + 1) * constant
            if self.constant_for.min() >= DEAD_AFTER and abs(loss - math.log(self.classes)) < 0.05:
                raise Diverged(
                    f"the network is dead at update {update}: for {DEAD_AFTER} updates every image has had the same logits "
                    f"(loss {loss:.4f}, ln {self.classes} = {math.log(self.classes):.4f}), so all class maps are 0 and pass "
                    "no gradient; what helps: optimizer.clip_norm=0.1, model.deviations=('he',), "
                    "schedule.warmup_epochs=1, another seed, or model.relu_on_class_maps=False",
                    update,
                )
            self.meter["loss"] += float(loss)
            self.meter["error"] += float(error)
            self.meter["updates"] += 1

    def _events(self) -> None:
        """What is due at the end of an epoch: row, evaluation, checkpoint."""
        c, epoch = self.config, self.step // self.epoch_updates
        rate = float(self.rate(np.int32(self.step - 1), self.state.opt_state))
        common = {"step": self.step, "epoch": epoch, "learning_rate": rate}
        if self.meter["updates"]:
            means = {"loss": self.meter["loss"] / self.meter["updates"]}
            means["error_pct"] = 100 * self.meter["error"] / self.meter["updates"]
            self._write(common | {"split": "train"} | means | {"images_per_s": self.images_per_s})
            self.meter = {"loss": 0.0, "error": 0.0, "updates": 0}
        dead = np.flatnonzero(self.constant_for >= DEAD_AFTER)
        if len(dead):
            say(
                f"warning: {len(dead)} of {self.classes} classes have had a constant logit for {DEAD_AFTER} updates: {dead.tolist()}"
            )
        final = self.step == self.last
        split = eval_name(c.eval_split)
        if (epoch % c.eval_every_epochs == 0 and (self.step, split) not in self.recorded) or final:
            with self.clock.time("compile"):
                self.evaluating.result()
            start = time.perf_counter()
            with self.clock.time("eval"):
                self.evaluation = self.evaluator([self.state.variables], self._stopped)
            if self.evaluation is None:
                return
            if not math.isfinite(self.evaluation["loss"]):
                raise Diverged(f"the loss of the evaluation after update {self.step} is not finite", self.step)
            images_per_s = self.evaluation["examples"] / (time.perf_counter() - start)
            means = {k: v for k, v in self.evaluation.items() if k != "examples"}
            self._write(common | {"split": split} | means | {"images_per_s": images_per_s})
            if epoch % c.checkpoint_every_epochs == 0 or final:
                self._save({"error_pct": self.evaluation["error_pct"]}, wait=final)
        elif epoch % c.checkpoint_every_epochs == 0:
            self._save()

    def _save(self, metrics: dict[str, float] | None = None, *, wait: bool = False) -> None:
        processes.from_first(lambda: self.record.check())
        if not all(np.isfinite(a).all() for a in jax.tree.leaves(host(self.state.params))):
            raise Diverged(f"the parameters after update {self.step} are not finite", self.step)  # and are not kept
        notes = {
            "meter": self.meter,
            "seconds": self.clock.seconds,
            "data": self.identity,
            "config": config_lib.to_dict(self.config),
            "healthy": not self.constant_for.all(),
        }
        self.checkpoints.save(self.step, self.state, notes, metrics, wait=wait)
        self.watchdog.beat()

    def _preempted(self) -> None:
        """Saves the present state, waits for it, and ends the command."""
        self._save(wait=True)
        raise Preempted(
            f"{self.stop.requested}: saved step {self.step} of {self.last} in {self.workdir}; start again to go on"
        )

    def _summary(self, status: str) -> dict[str, Any]:
        evaluation: dict[str, float] = {}
        if status == "done":
            self.checkpoints.wait()
            evaluation = self.evaluation or {}  # else it is of an earlier state
        seconds = self.clock.seconds.get("train", 0.0)
        device = self.mesh.devices.flat[0]
        summary = {
            "status": status,
            "step": self.step,
            "epochs": self.step / self.epoch_updates,
            "params": self.params,
            "test_error_pct": evaluation.get("error_pct"),
            **{f"test_{k}": v for k, v in evaluation.items() if k == "top5_error_pct"},
            "test_loss": evaluation.get("loss"),
            "test_examples": evaluation.get("examples"),
            "train_seconds": seconds,
            "compile_seconds": self.clock.seconds.get("compile", 0.0),
            "eval_seconds": self.clock.seconds.get("eval", 0.0),
            "images_per_s": self.step * self.config.batch_size / seconds if seconds else 0.0,
            "device": f"{device.platform} {device.device_kind}",
            "devices": self.mesh.size,
            "seed": self.config.seed,
            "bad_records": self.bad_records,
            "rollbacks": self.rollbacks,
            "versions": versions(),
            "commit": commit(),
            "fingerprint": config_lib.fingerprint(self.config),
        }
        processes.from_first(lambda: storage.write_json(self.workdir / "summary.json", summary))
        if status == "done":
            say(
                f"done: test error {summary['test_error_pct']:.2f} % of {summary['test_examples']}, "
                f"{seconds:.1f} s of training, {summary['images_per_s']:,.0f} images/s; {self.workdir}/summary.json"
            )
        return summary


def eval_name(split: str) -> str:
    """What the rows of an evaluation split are called: "test" for "test[:1000]", "validation" for a part of "train"."""
    name = split.split("[")[0]
    return "validation" if name == "train" else name
