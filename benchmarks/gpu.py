"""Our training step against PyTorch's on an NVIDIA GPU: CIFAR-10's network on noise, bfloat16, alternating in one process.

    python -m benchmarks gpu

PyTorch runs as its documentation recommends for speed: channels_last, autocast to bfloat16, fused SGD, and `torch.compile`
with mode "max-autotune", which captures CUDA graphs, or eager, whichever was faster in a trial. Its images lie preprocessed on
the GPU, its batches are drawn there, and it never waits for the host within a turn. Ours preprocesses in each step, and makes
100 updates a dispatch, as a run does.

A last row has the first layer by cuDNN and by `layers/cuda.py`.
"""

from __future__ import annotations

import functools
import json
import os
import statistics
import subprocess
import sys
import time
import unittest.mock
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks import measure
from benchmarks.runs import on_noise
from benchmarks.torch_nin import Setting, Trainer, network
from nin_jax.console import say
from nin_jax.data import fitted
from nin_jax.errors import UserError
from nin_jax.layers import cuda
from nin_jax.training.describe import multiply_adds

DISPATCH = 100  # updates
ROUNDS = 5
SETTINGS = Setting(True, "", True), Setting(True, "max-autotune", True)


def compare(batch: int, updates: int = 4 * DISPATCH) -> dict[str, Any]:
    """The row of one batch size; `updates` are those of a turn."""
    inverted: dict[str, Any] = {"model.dropout_kind": "inverted"}  # PyTorch's
    ours = on_noise("cifar10", batch, "bfloat16", DISPATCH * batch, **inverted)
    images, labels = ours.split
    prepare = jax.jit(lambda part: fitted.apply(ours.recipe.preprocess, ours.stats, part))
    prepared = np.concatenate([prepare(images[i : i + 4096]) for i in range(0, len(images), 4096)])
    image = torch.from_numpy(prepared.transpose(0, 3, 1, 2).copy()).cuda().contiguous(memory_format=torch.channels_last)
    label = torch.from_numpy(labels.astype(np.int64)).cuda()
    truth = ours.evaluate()["loss"]
    params = jax.tree.map(np.asarray, ours.state.params)

    def turn(trainer: Trainer, times: int) -> Callable[[], None]:
        def run() -> None:
            for _ in range(times):
                rows = torch.randint(0, len(label), (batch,), device="cuda")
                trainer.update(image[rows], label[rows])
            torch.cuda.synchronize()

        return run

    eager, compiled = (Trainer(network(ours.recipe.model, params, 3, s).cuda(), ours.config, s) for s in SETTINGS)
    theirs = statistics.mean(
        eager.evaluate(image[i : i + batch], label[i : i + batch]) for i in range(0, len(label), batch)
    )
    if abs(theirs - truth) > 0.02:
        raise AssertionError(f"PyTorch's loss {theirs}, ours {truth}")
    trial: dict[str, float] = {}
    for setting, trainer in zip(SETTINGS, (eager, compiled), strict=True):
        begin = time.perf_counter()
        turn(trainer, 20)()  # compiles
        say(f"batch {batch}: PyTorch {setting}: first updates in {time.perf_counter() - begin:.0f} s")
        begin = time.perf_counter()
        turn(trainer, 50)()
        trial[str(setting)] = round((time.perf_counter() - begin) / 50, 6)
    best = min(trial, key=lambda name: trial[name])
    sides = {
        "PyTorch": turn(compiled if best == str(SETTINGS[1]) else eager, updates),
        "nin_jax": lambda: ours.update(updates // ours.length),
    }
    row = measure.alternate(sides, ROUNDS, updates)
    rate = matrix_rate()
    variables, one = ours.state.variables, jax.ShapeDtypeStruct((1, *images.shape[1:]), jnp.float32)
    forward = multiply_adds(lambda v, x: ours.recipe.apply(v, x, train=False), variables, one)
    flops = 6 * forward  # an image's: two for each multiply-add; the gradient about twice the forward pass
    share = batch * flops / row["median"]["nin_jax"] / rate
    return {"what": "training", "network": "cifar10", "precision": "bfloat16", "batch": batch, "images": batch} | {
        "setting": best,
        "trials": trial,
        "flops_per_image": flops,
        "matrix_flops_per_s": rate,
        "share": share,
        **row,
    }


def first_layer(batch: int = 128, turn: int = 3) -> dict[str, Any]:
    """The row of an update whose first layer is computed in either way; a turn is so many dispatches."""
    sides = {}
    for side, window in (("cuDNN", 0), ("patches", cuda.WINDOW)):
        with unittest.mock.patch.object(cuda, "WINDOW", window):
            sides[side] = functools.partial(on_noise("cifar10", batch, "bfloat16", DISPATCH * batch).update, turn)
    row = measure.alternate(sides, ROUNDS, turn * DISPATCH)
    return {"what": "update", "network": "cifar10", "precision": "bfloat16", "batch": batch, **row}


def matrix_rate(size: int = 8192, times: int = 20) -> float:
    """FLOPs a second of a product of two bfloat16 matrices of random numbers, by PyTorch."""
    a, b = (torch.randn(size, size, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    seconds = []
    for _ in range(times):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        torch.mm(a, b)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    return 2 * size**3 / statistics.median(seconds)


def main() -> None:
    """Every row, each in a process of its own. Raises `UserError` where there is no GPU."""
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # the GPU is shared with PyTorch and with the rows' processes
    if jax.default_backend() != "gpu":
        raise UserError(
            f"benchmarks gpu: JAX runs on {jax.default_backend()} here; it needs an NVIDIA GPU and the extra cuda"
        )
    rows = []
    for what in ("128", "1024", "first_layer"):
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.gpu", what], stdout=subprocess.PIPE, check=True, text=True
        )
        rows.append(json.loads(done.stdout.splitlines()[-1]) | {"device": jax.devices()[0].device_kind})
        measure.save("gpu", rows)


if __name__ == "__main__":
    print(json.dumps(first_layer() if sys.argv[1] == "first_layer" else compare(int(sys.argv[1]))))
