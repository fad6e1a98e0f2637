"""Seconds and memory of the answers of a trained detector, of HCP or of class maps, over many pictures.

    python -m benchmarks.pictures WHAT FOLDER (--run=DIR | --model=NAME) [--count=1000] [--detect]

WHAT names the row of experiments/results/pictures.json that is written; `python -m nin_jax.paper.detection` shows it. DIR is a run of
nin_jax.detection.main or of HCP; of a network, --detect asks for the boxes of its class maps. The pictures of FOLDER are taken again
and again, until `count` have been answered. Seconds are those of the processor, all cores together, without the first 100
pictures, in which programs are compiled.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from nin_jax import storage
from nin_jax.arguments import Parser
from nin_jax.cli import detect, network
from nin_jax.console import exiting, track
from nin_jax.detection.detector import Detector
from nin_jax.errors import UserError
from nin_jax.training.predict import decoded

RECORD = Path(__file__).parents[1] / "experiments" / "results" / "pictures.json"
EDGE = 100  # first and last pictures whose memory is compared


def resident() -> float:
    """The memory of this process now, in MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def answerer(given: argparse.Namespace) -> tuple[Callable[[np.ndarray], object], Callable[[np.ndarray], int]]:
    """What answers a picture, and how many hypotheses it looks at; 0: none but the whole picture."""
    seer = detect.network(given)
    if isinstance(seer, Detector):
        return lambda image: detect.of_detector(seer, image), lambda image: len(seer.propose(image, ""))
    if given.detect:
        return lambda image: detect.of_maps(seer, image), lambda image: 0
    height, width, _ = seer.info.image_shape
    return seer.classify, lambda image: height // width if height > width else 0


def main() -> None:
    """Runs the command line above."""
    parser = Parser("python -m benchmarks.pictures", __doc__)
    parser.add_argument("what")
    parser.add_argument("folder")
    network.add_flags(parser)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--detect", action="store_true")
    given = parser.parse(sys.argv[1:])
    files = sorted(file for file in Path(given.folder).glob("*") if file.suffix in (".jpg", ".png"))
    if not files or given.count < 3 * EDGE:
        raise UserError(
            f"folder={given.folder}, --count={given.count}: some pictures, and {3 * EDGE} or more to answer"
        )
    answer, hypotheses = answerer(given)
    held, seconds, looked = [], [], []
    for file in track(itertools.islice(itertools.cycle(files), given.count), given.count, "pictures"):
        begin = time.process_time()
        image = decoded(str(file), (1, 1, 3), make=lambda pixels: pixels)
        answer(image)
        seconds.append(time.process_time() - begin)
        looked.append(hypotheses(image))
        held.append(resident())
    row = {
        "pictures": [given.count, len(files)],
        "hypotheses": round(statistics.fmean(looked)),
        "cpu_s": round(statistics.fmean(seconds[EDGE:]), 3),
        "first_mib": round(statistics.fmean(held[:EDGE])),
        "second_mib": round(statistics.fmean(held[EDGE : 2 * EDGE])),
        "last_mib": round(statistics.fmean(held[-EDGE:])),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }
    kept = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    storage.write_json(RECORD, dict(sorted((kept | {given.what: row}).items())))
    print(json.dumps(row))


if __name__ == "__main__":
    with exiting():
        main()
