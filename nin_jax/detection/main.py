"""Detection as in the slides of 2014: R-CNN with the features of trained networks, and localisation by class maps.

    python -m nin_jax.detection.main --config=experiments/detect_NAME.py[:ARG] [--workdir=DIR] [--config.KEY=VALUE ...]

DIR (default: runs/detect_NAME) gets config.json, features/, detector.npz, detections.json, report.html and report.json. A start after an interruption
computes what is missing.
"""

from __future__ import annotations

import json
import re
import resource
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from nin_jax import config as config_lib
from nin_jax import main as training_main
from nin_jax import schema, storage
from nin_jax.console import exiting, say
from nin_jax.detection import config as detection_config
from nin_jax.detection.config import Detection
from nin_jax.errors import StorageFailed, UserError, one_line
from nin_jax.storage import expanded

if TYPE_CHECKING:
    from nin_jax.detection.pictures import Pictures
    from nin_jax.detection.store import Store


def parse(argv: Sequence[str]) -> tuple[ConfigDict, Path]:
    """The config and the run directory of a command line. Raises `UserError`; executes nothing but the config file."""
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "Run directory; default runs/NAME.", flag_values=values)
    if any(re.fullmatch(r"--?h(elp(short|full)?)?", word) for word in argv[1:]):
        print(f"{__doc__}\n{values.get_help()}\n\nkeys of a config [default]:\n{schema.help_text(Detection)}")
        raise SystemExit(0)
    named = [word for word in argv[1:] if re.match(r"--?config=", word)]
    if len(named) != 1:
        raise UserError("--config: name one experiment, such as --config=experiments/detect_scenes.py")
    file, argument = training_main.find(named[0].split("=", 1)[1], config_lib.experiments(detection=True))
    config = training_main.load(file, argument)
    arguments = [word for word in argv if word != named[0]]
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=arguments)
        left = values(arguments)
    except flags.Error as error:
        raise UserError(one_line(error)) from error
    except Exception as error:  # ml_collections raises as it likes
        raise UserError(f"--config.KEY=VALUE: {one_line(error)}") from error
    if len(left) > 1:
        raise UserError(f"argument {left[1]!r} is not a flag; write --config.KEY=VALUE")
    default = training_main.default_directory(file, argument)
    return values.config, training_main.local_directory("--workdir", values.workdir or default)


def run(config: Detection, plain: dict[str, Any], workdir: Path, words: Sequence[str] = ()) -> dict[str, Any]:
    """Runs an experiment and writes its report. Raises `UserError`.

    Args:
      config, plain: its config, checked and as it was given.
      workdir: the run directory.
      words: of its command line, for the report.
    """
    from nin_jax.detection import localisation, pictures, pipeline
    from nin_jax.detection.store import Store
    from nin_jax.runs.provenance import commit, versions

    begin = time.perf_counter()
    storage.make_folder(workdir)
    _claim(workdir)
    storage.write_json(workdir / "config.json", plain)
    train, test = pictures.read(config)
    for what, part, where in (("training", train, config.path), ("test", test, config.test_path or config.path)):
        if not len(part):
            raise UserError(f"{where}: there are no {what} pictures")
    kept = [w for w in words[1:] if not re.match(r"--?(workdir|config\.features)\b", w)]
    named = next((w.split("=", 1)[1] for w in kept if re.match(r"--?config=", w)), "")
    report: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "nin_jax.detection.main", *kept]),
        "experiment": named,
        "seed": config.seed,
        "pictures": [len(train), len(test)],
    }
    # Before anything is computed: what it raises is about the config.
    chosen = pipeline.classes(config, train, test) if config.networks else []
    features = expanded(config.features) if config.features else workdir / "features"
    store = Store(features, config) if config.networks else None
    if config.localise and (boxes := localisation.measure(config, train, test, workdir / "localisation.json")):
        report["localisation"] = boxes
    if store:
        report |= _detected(config, chosen, store, train, test, workdir, report)
    report |= {
        "seconds": time.perf_counter() - begin,
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "versions": versions(),
        "commit": commit(),
    }
    storage.write_json(workdir / "report.json", report)
    found = f"mAP {report['map_pct']:.2f} % (VOC 2007) in {len(test)} pictures; " if config.networks else ""
    say(f"done: {found}{workdir}/report.json")
    return report


def _claim(workdir: Path) -> None:
    """Raises `UserError` for a directory whose config.json is not that of a detection, but of a training, say."""
    file = workdir / "config.json"
    try:
        if not file.exists() or json.loads(file.read_text()).keys() <= schema.keys(Detection).keys():
            return
    except (ValueError, AttributeError, RecursionError):
        pass
    raise UserError(f"--workdir={workdir}: its config.json is not of a detection; choose another --workdir")


def _detected(
    config: Detection,
    chosen: list[int],
    store: Store,
    train: Pictures,
    test: Pictures,
    workdir: Path,
    report: dict[str, Any],
) -> dict[str, Any]:
    """What a report says of detection. Writes detections.json and report.html."""
    from nin_jax.detection import pipeline, report_page

    results = pipeline.detect(config, chosen, store, train, test, workdir)
    measured = [(100 * r.ap, 100 * r.area) for r in results if r.ap is not None and r.area is not None]
    found = {
        "map_pct": sum(ap for ap, _ in measured) / len(measured),
        "area_map_pct": sum(area for _, area in measured) / len(measured),
        "classes": {
            r.name: {
                "ap_pct": None if r.ap is None else 100 * r.ap,
                "area_pct": None if r.area is None else 100 * r.area,
                "train": r.objects[0],
                "test": r.objects[1],
            }
            for r in results
        },
        "proposals": pipeline.coverage(store, test),
        "features_s_per_picture": sum(store.seconds) / len(store.seconds),
    }
    detections = {
        r.name: {
            name: [[round(float(s), 4), *map(float, box.round(2))] for s, box in zip(f.scores, f.boxes, strict=True)]
            for name, f in r.found.items()
        }
        for r in results
    }
    storage.write_json(workdir / "detections.json", detections)
    report_page.write(workdir, report | found, results, test)
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Runs a command line."""
    words = list(argv or sys.argv)
    config, workdir = parse(words)
    checked = detection_config.check(config)

    from nin_jax.data.cache import cache_dir
    from nin_jax.devices.process import prepare_process

    prepare_process(cache_dir() / "xla")
    try:
        run(checked, json.loads(config.to_json_best_effort()), workdir, words)
    except OSError as error:
        raise StorageFailed(one_line(error)) from error


if __name__ == "__main__":
    with exiting():
        main()
