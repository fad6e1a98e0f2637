"""Data-parallel training on 1, 2, 4, 8 devices: bytes all-reduced per step, equality of the results, and a model of the time.

The devices are forced CPU devices on the same cores: bytes and equality carry over to real ones, seconds do not.
docs/scaling.md has the model and its assumptions.
"""

from __future__ import annotations

import functools
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from benchmarks import measure
from benchmarks.accelerators import roofline
from benchmarks.hlo import Program
from nin_jax.devices.cpu_memory import await_dispatches, reuse_memory

DEVICES = 1, 2, 4, 8


class Links(NamedTuple):
    """What joins accelerators; assumptions from data sheets, of which none was measured here.

    Attributes:
      inside, between: bytes per second and device in a group of devices, and between groups.
      hop: seconds from one device to the next.
      group: devices of a group: a host's GPUs, or the side of a TPU's square, whose links in the other direction are
        those between groups.
    """

    inside: float
    between: float
    hop: float
    group: Callable[[int], int]


LINKS = {
    "cuda:h100": Links(300e9, 50e9, 5e-6, lambda n: min(n, 8)),
    "tpu:v5e": Links(50e9, 50e9, 1e-6, lambda n: 2 ** (n.bit_length() // 2)),
}
NAME, BATCH, UPDATES = "digits", 128, 3


def all_reduced(compiled: Any) -> list[int]:
    """Bytes of each all-reduce of a compiled function, per replica, from its HLO."""
    collectives = Program(compiled.program.as_text()).collectives()
    return [size for kind, size in collectives if kind == "all-reduce"]


def devices(row: dict[str, Any]) -> int:
    """How many devices a row of benchmarks/accelerators.py was compiled for."""
    return math.prod(int(n) for n in row["target"].split(":")[-1].split("x"))


@functools.cache
def compiled(kind: str) -> tuple[list[tuple[int, float]], int]:
    """Of CIFAR-10's update in bfloat16, compiled for accelerators of a kind, by the rows of benchmarks/accelerators.py:
    seconds by roofline for each number of images on a device, and the bytes that are all-reduced."""
    seconds, sizes = {}, set()
    for row in measure.read("accelerators")["rows"]:
        ours = row["what"] == "update" and row["precision"] == "bfloat16" and not row["textbook"]
        if ours and row["target"].startswith(f"{kind}:"):
            seconds[row["batch_size"] // devices(row)] = max(roofline(row))
            if devices(row) > 1:
                sizes.add(sum(size for _, size in row["collectives"]))
    (size,) = sizes  # however many devices
    return sorted(seconds.items()), size


def model(kind: str, images: float, devices: int) -> tuple[float, float]:
    """Seconds of compute and of the all-reduce of an update with so many images on each device; nothing overlaps.

        compute = the roofline's time, linear between the sizes that were compiled, beyond them constant and proportional
        all-reduce = 2 (n - 1) / n * bytes / link + 2 (n - 1) * hop,   for n = devices of a group, and then groups

    A ring sends 2 (n - 1) / n of the bytes through every link. There is a ring in each group and then one across groups,
    in which each device sends 1 / group of the bytes.
    """
    points, size = compiled(kind)
    sizes, seconds = np.array(points).T
    most = max(images / sizes[-1], 1.0)  # times the largest that was compiled
    compute = most * float(np.interp(images / most, sizes, seconds))
    links = LINKS[kind]
    group = links.group(devices)

    def ring(n: int, size: float, link: float) -> float:
        return 2 * (n - 1) / n * size / link + 2 * (n - 1) * links.hop

    return compute, ring(group, size, links.inside) + ring(devices // group, size / group, links.between)


def efficiency(kind: str, images: float, devices: int, alone: float) -> float:
    """Images per second and device, as a part of those of one device with `alone` images an update.

    `alone` is `images` for weak scaling, `images * devices` for strong scaling.
    """
    return (images / sum(model(kind, images, devices))) / (alone / sum(model(kind, alone, 1)))


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
