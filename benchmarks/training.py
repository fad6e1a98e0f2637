"""Our training step and evaluation against PyTorch's, side by side in one process.

Both networks start from the same weights and must give the same loss before they are timed. PyTorch runs in the setting
that was fastest in a trial: all settings are tried on the first workload, on the others those that compile only if one of
them won; at batch 1024, where a step takes ten seconds, just the winner at batch 128. We evaluate in batches as large as a
run's; PyTorch in those or in batches as large as the step's, whichever was faster in a trial.
"""

from __future__ import annotations

import functools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import torch

from benchmarks import measure
from benchmarks.runs import on_noise
from benchmarks.torch_nin import Setting, Trainer, network
from nin_jax import config as config_lib
from nin_jax.console import say
from nin_jax.data import fitted, memory
from nin_jax.devices.cpu_memory import await_dispatches, reuse_memory


class Workload(NamedTuple):
    """An experiment on noise.

    Attributes:
      name: of the experiment.
      batch: images per step.
      examples: images per evaluation.
      rounds: turns of each side.
      updates: steps per turn.
      precision: of both sides.
      evaluation: whether evaluation is timed too.
      changes: other keys of the config.
    """

    name: str
    batch: int
    examples: int
    rounds: int = 5
    updates: int = 1
    precision: str = "float32"
    evaluation: bool = True
    changes: Mapping[str, Any] = {}


BFLOAT16 = (
    128 if "bf16" in measure.processor() else 8
)  # images per step: PyTorch takes 20 s for 128 without hardware for it

WORKLOADS = (
    Workload("cifar10", 128, 1024, rounds=7, updates=2),
    Workload("mnist", 128, 1024, updates=2),
    Workload("cifar10", 1024, 1024, evaluation=False),
    Workload("imagenet", 32, 32, changes={"dataset": "synthetic(size=224,classes=1000)"}),
    Workload("cifar10", BFLOAT16, 8 * BFLOAT16, precision="bfloat16"),
)

SETTINGS = (Setting(False), *(Setting(True, mode) for mode in ("", "default", "max-autotune")))


def evaluate(trainer: Trainer, image: torch.Tensor, label: torch.Tensor, size: int) -> list[float]:
    """PyTorch's mean loss on each batch of `size` images."""
    return [trainer.evaluate(image[i : i + size], label[i : i + size]) for i in range(0, len(label), size)]


def compare(workload: Workload, settings: Sequence[Setting]) -> list[dict[str, Any]]:
    """The rows of one workload: training, and evaluation."""
    name, batch, examples, rounds, updates, precision, evaluation, changes = workload
    low = precision == "bfloat16"
    if "dropout_kind" in config_lib.to_dict(config_lib.experiment(name))["model"]:
        changes = {"model.dropout_kind": "inverted", **changes}  # PyTorch's
    ours = on_noise(name, batch, precision, examples, **changes)
    images, labels = ours.split
    prepared = np.array(fitted.apply(ours.recipe.preprocess, ours.stats, jax.numpy.asarray(images)))
    image, label = torch.from_numpy(prepared.transpose(0, 3, 1, 2).copy()), torch.from_numpy(labels.astype(np.int64))
    shape, params = ours.run.info.image_shape, jax.tree.map(np.asarray, ours.state.params)
    truth = ours.evaluate()["loss"]

    trainers: dict[str, Trainer] = {}
    trial: dict[str, float] = {}
    for setting in (s._replace(bfloat16=low) for s in settings):
        model = network(ours.recipe.model, params, shape[-1], setting)
        trainer = Trainer(model, ours.config, setting)
        loss = statistics.mean(evaluate(trainer, image, label, batch))
        if abs(loss - truth) > (0.02 if low else 1e-4):
            raise AssertionError(f"{setting}: loss {loss}, ours {truth}")
        seconds = []
        trainers[str(setting)] = trainer
        if len(settings) == 1:
            continue
        for _ in range(4):  # the first compiles
            begin = time.perf_counter()
            trainer.update(image[:batch], label[:batch])
            seconds.append(time.perf_counter() - begin)
        trial[str(setting)] = round(statistics.median(seconds[1:]), 4)
        say(f"{name}, batch {batch}: PyTorch {setting}: {trial[str(setting)]:.3f} s an update")
    best = min(trainers, key=lambda k: trial.get(k, 0.0))
    theirs = trainers[best]
    rng = np.random.default_rng(0)

    def update() -> None:
        for _ in range(updates):
            rows = torch.from_numpy(rng.integers(0, len(label), batch))
            theirs.update(image[rows], label[rows])

    known = {"network": name, "precision": precision, "loss": truth}
    training = known | {"what": "training", "batch": batch, "setting": best, "trials": trial, "images": batch}
    row = measure.alternate({"PyTorch": update, "nin_jax": lambda: ours.update(updates)}, rounds, updates * ours.length)
    rows = [training | row]
    if evaluation:
        source = ours.evaluator.source
        assert isinstance(source, memory.InOrder)
        own = source.batch_size
        ways = {size: functools.partial(evaluate, theirs, image, label, size) for size in {batch, own}}
        row = measure.alternate({str(size): way for size, way in ways.items()}, 3)
        size = min(ways, key=lambda size: row["median"][str(size)])
        trial = {f"{best}, batch {size}": seconds for size, seconds in row["median"].items()}
        known |= {"what": "evaluation", "batch": own, "setting": f"{best}, batch {size}", "trials": trial}
        row = measure.alternate({"PyTorch": ways[size], "nin_jax": ours.evaluate}, rounds)
        rows.append(known | {"images": len(label)} | row)
    for row in rows:
        say(
            f"{name}, batch {row['batch']}, {precision}, {row['what']}: "
            f"{measure.ratio(row, 'PyTorch', 'nin_jax')[0]:.2f} times {row['setting']}"
        )
    return rows


def main() -> None:
    """All workloads, each in a process of its own."""
    rows: list[dict[str, Any]] = []
    settings = [str(s) for s in SETTINGS]
    for i, workload in enumerate(WORKLOADS):
        if rows:
            trial = rows[0]["trials"]
            fastest = min(trial, key=lambda name: trial[name])
            settings = [fastest] if workload.batch == 1024 else [fastest, *(str(s) for s in SETTINGS if not s.compiled)]
        command = [sys.executable, "-m", "benchmarks.training", str(i), *settings]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
        rows += json.loads(done.stdout.splitlines()[-1])
        measure.save("training", rows)


if __name__ == "__main__":
    await_dispatches()
    reuse_memory()
    chosen = [s for s in SETTINGS if str(s) in sys.argv[2:]]
    print(json.dumps(compare(WORKLOADS[int(sys.argv[1])], chosen)))
