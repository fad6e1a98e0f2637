"""Data-parallel training on 1, 2, 4, 8 devices: bytes all-reduced per step, equality of the results, and a model of the time.

The devices are forced CPU devices on the same cores: bytes and equality carry over to real ones, seconds do not.
docs/performance.md has the model and its assumptions.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from typing import Any

import numpy as np

from benchmarks import measure
from benchmarks.hlo import Program
from nin_jax.devices.cpu_memory import await_dispatches, reuse_memory

DEVICES = 1, 2, 4, 8

# The model's assumptions about an accelerator (H100 and H200 class); none of them was measured here.
# Operations per CIFAR-10 image: forward, and twice that backward, without the gradient by the image.
OPERATIONS = 3 * 2 * 222_486_528 - 2 * 14_745_600
RATE = 790e12 * 0.4  # operations per second in bfloat16, and the fraction that a step reaches
BYTES = 4 * 966_986  # of the gradients, float32
HOST = 8  # accelerators per host
INSIDE, BETWEEN = 300e9, 50e9  # bytes per second and accelerator, inside a host and between hosts
LATENCY = 5e-6  # seconds per hop
NAME, BATCH, UPDATES = "digits", 128, 3


def all_reduced(compiled: Any) -> list[int]:
    """Bytes of each all-reduce of a compiled function, per replica, from its HLO."""
    collectives = Program(compiled.program.as_text()).collectives()
    return [size for kind, size in collectives if kind == "all-reduce"]


def model(images: int, devices: int) -> tuple[float, float]:
    """Seconds of compute and of the all-reduce of a step with so many images on each device; nothing overlaps.

        compute = images * OPERATIONS / RATE
        all-reduce = 2 (n - 1) / n * BYTES / link + 2 (n - 1) * LATENCY,   n = devices, or HOST and then hosts

    A ring sends 2 (n - 1) / n of the bytes through every link. With several hosts there is a ring in each host and then
    one across hosts, in which each accelerator sends 1 / HOST of the bytes.
    """
    compute = images * OPERATIONS / RATE

    def ring(n: int, size: float, link: float) -> float:
        return 2 * (n - 1) / n * size / link + 2 * (n - 1) * LATENCY

    inside = min(devices, HOST)
    sums = ring(inside, BYTES, INSIDE)
    if devices > HOST:
        sums += ring(devices // HOST, BYTES / HOST, BETWEEN)
    return compute, sums


def child(devices: int) -> list[dict[str, Any]]:
    """Three steps of the same batch size (strong scaling) and of the same size per device (weak): bytes sent, and the result."""
    import jax

    from benchmarks.runs import on_noise

    assert jax.device_count() == devices
    rows: dict[int, dict[str, Any]] = {}
    for batch in (BATCH, BATCH // DEVICES[-1] * devices):
        if batch in rows:
            continue
        ours = on_noise(NAME, batch)
        timed = measure.alternate({"update": ours.update}, UPDATES - 1)
        leaves = [np.asarray(p, np.float64) for p in jax.tree.leaves(ours.state.params)]
        rows[batch] = {
            "devices": devices,
            "batch": batch,
            "all_reduces": all_reduced(ours.compiled),
            "params": sum(p.size for p in leaves),
            "norm": math.sqrt(sum(float((p**2).sum()) for p in leaves)),
            "median": timed["median"]["update"],
        }
    weak = rows[BATCH // DEVICES[-1] * devices]
    return [{"what": "strong"} | rows[BATCH], {"what": "weak"} | weak]


def main() -> None:
    """Each number of devices in a process of its own."""
    rows = []
    for devices in DEVICES:
        flags = os.environ.get("XLA_FLAGS", "") + f" --xla_force_host_platform_device_count={devices}"
        env = os.environ | {"XLA_FLAGS": flags, "NPROC": "16"}
        command = [sys.executable, "-m", "benchmarks.scaling", str(devices)]
        done = subprocess.run(command, env=env, stdout=subprocess.PIPE, check=True, text=True)
        rows += json.loads(done.stdout.splitlines()[-1])
    measure.save("scaling", rows)


if __name__ == "__main__":
    await_dispatches()
    reuse_memory()
    print(json.dumps(child(int(sys.argv[1]))))
