"""The input pipeline of ImageNet alone: pictures a second for decoding, cutting and everything, and memory over 20,000.

    TFDS_DATA_DIR=... python -m benchmarks stream

It wants imagenet2012 prepared there, or a part of it: the first pictures of its splits are gone through again and again,
once as they are and once packed with a short side of 256 pixels.
"""

from __future__ import annotations

import dataclasses
import io
import os
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image

from benchmarks import measure
from nin_jax.console import say
from nin_jax.data import encoded, stream, views
from nin_jax.data.datasets import imagenet
from nin_jax.data.prepare import pack
from nin_jax.devices.mesh import host, make_mesh

DIFFERENT, BATCH, BATCHES = 60, 64, 40  # pictures; and those of one turn
LONG = 20_000  # pictures that memory is watched over


class Again(Sequence[Any]):
    """Records that come again and again."""

    def __init__(self, records: Sequence[Any], length: int):
        self.records, self.length = records, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: Any) -> Any:
        return self.records[index % min(DIFFERENT, len(self.records))]


def run_through(pictures: encoded.Pictures, batches: int, workers: int = 0) -> list[tuple[float, int]]:
    """Takes so many batches as the loop does; returns seconds and this process' size in bytes after each."""
    source = stream.TrainStream(pictures, make_mesh(), BATCH, 0, 1, workers)
    source.source = dataclasses.replace(source.source, updates=batches)
    begin, marks = time.perf_counter(), []
    for number in range(batches):
        host(source.at(number).label)
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
        marks.append((time.perf_counter() - begin, resident))
    source.close()
    return marks


def rates(pictures: encoded.Pictures, what: str) -> dict[str, Any]:
    """Everything against its parts, on all cores, in turns; and the parts on one core."""
    units = BATCH * BATCHES
    data = [pictures.records[i]["image"] for i in range(DIFFERENT)]
    uniform = np.random.default_rng(0).random((DIFFERENT, 2))

    def decode(i: int) -> None:
        Image.open(io.BytesIO(data[i % DIFFERENT])).load()

    def cut(i: int) -> np.ndarray:
        picture, to, _ = pictures.decode(i)
        return encoded.cut(picture, to, views.random_window(uniform[i % DIFFERENT].tolist(), *to, pictures.size))

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        row = measure.alternate(
            {
                "decoder": lambda: list(pool.map(decode, range(units))),
                "decoded and cut": lambda: list(pool.map(cut, range(units))),
                "stream": lambda: run_through(pictures, BATCHES),
            },
            rounds=5,
            units=units,
        )
    one = measure.alternate(
        {"decoder": lambda: list(map(decode, range(120))), "decoded and cut": lambda: list(map(cut, range(120)))},
        5,
        120,
    )
    say(f"{what}: {measure.ratio(row, 'decoder', 'stream')[0]:.2f} of the decoder's rate")
    return {"what": "rate", "pictures": what, "one core": one} | row


def workers(pictures: encoded.Pictures, what: str) -> dict[str, Any]:
    """Pictures a second in threads of one process and in two processes, from the first batch to the last."""
    rates: dict[str, list[float]] = {}
    for _ in range(3):
        for count in (0, 1, 2):
            marks = run_through(pictures, BATCHES, count)
            rate = BATCH * (len(marks) - 8) / (marks[-1][0] - marks[7][0])  # by then what waited is gone
            rates.setdefault(str(count), []).append(round(rate, 1))
    return {"what": "workers", "pictures": what, "images_per_s": rates}


def watch(pictures: encoded.Pictures, what: str) -> dict[str, Any]:
    """The process' size over many pictures, every 1,000 or so."""
    marks = run_through(pictures, LONG // BATCH)
    return {"what": "memory", "pictures": what, "images": LONG, "bytes": [size for _, size in marks[15::16]]}


def decoders(pictures: encoded.Pictures) -> dict[str, Any]:
    """Pillow and simplejpeg, each from bytes to an array of the window, on one core."""
    data = [pictures.records[i]["image"] for i in range(DIFFERENT)]

    def pillow() -> None:
        for d in data:
            np.asarray(Image.open(io.BytesIO(d)).crop((0, 0, 224, 224)))

    def other() -> None:
        for d in data:
            np.array(simplejpeg.decode_jpeg(d, "RGB")[:224, :224])

    return {"what": "decoders"} | measure.alternate({"Pillow": pillow, "simplejpeg": other}, 9, DIFFERENT)


def packing(pictures: encoded.Pictures, folder: Path) -> dict[str, Any]:
    """Seconds a picture to make it smaller, on one core, and what is left of it."""
    data = [pictures.records[i]["image"] for i in range(DIFFERENT)]
    packed: list[bytes] = []

    def all_of_them() -> None:
        packed[:] = [pack.encoded(d, 256, "") for d in data]

    row = measure.alternate({"packing": all_of_them}, 5, DIFFERENT)
    for i, d in enumerate(packed):
        path = folder / "train" / "n01440764" / f"n01440764_{i}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(d)
    return {"what": "packing", "bytes": sum(map(len, data)), "packed": sum(map(len, packed))} | row


def main() -> None:
    """All of them."""
    found = imagenet.load("train+validation", None)
    whole = dataclasses.replace(found, records=Again(found.records, 10**6))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        rows = [packing(whole, folder / "tree")]
        pack.pack(folder / "tree", folder / pack.NAME / pack.VERSION, 0, 1)
        small = imagenet.load("train", scratch)
        small = dataclasses.replace(small, records=Again(small.records, 10**6))
        for pictures, what in ((whole, "as they are"), (small, "packed")):
            rows.append(rates(pictures, what))
        rows += [decoders(small), workers(small, "packed"), watch(whole, "as they are")]
    measure.save("stream", rows)
