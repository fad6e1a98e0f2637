"""Tables of detection and localisation: the slides' figures beside the recorded runs.

    python -m nin_jax.paper.detection                      # rewrites the tables in docs/detection.md
    python -m nin_jax.paper.detection --collect RUN_DIR... # first adds finished runs to experiments/results/detection
    python -m nin_jax.paper.detection --hcp=SCORES.json    # first adds what --scores of HCP on VOC 2012 (val) has written

A recorded run is experiments/results/detection/NAME.json, NAME being that of its run directory: what its report.json holds.
Of HCP on VOC 2012 the average precision of each class is recorded, in experiments/results/hcp_voc2012.json. What an answer costs is
in experiments/results/pictures.json, which benchmarks/pictures.py writes.
"""

from __future__ import annotations

import functools
import json
import re
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nin_jax import config as config_lib
from nin_jax import main as main_lib
from nin_jax import storage
from nin_jax.arguments import Parser
from nin_jax.console import exiting
from nin_jax.data.objects.annotations import VOC_CLASSES
from nin_jax.errors import UserError, one_line
from nin_jax.paper import pages, reported, tables
from nin_jax.training import fusion
from nin_jax.training.average_precision import ranking, under_curve

PAGE, RESULTS, HCP = "docs/detection.md", "experiments/results/detection", "experiments/results/hcp_voc2012.json"
COSTS = "experiments/results/pictures.json"
VAL_2012 = 5823  # pictures
# Arguments of experiments/detect_scenes.py and detect_voc.py, the slides' method, and what it is called here.
METHODS = {
    "": ("NIN, validation", "one network"),
    "three": ("3 NINs, validation", "three networks"),
    "context": ("3 NINs + ctx, validation", "three networks, context"),
    "hog": ("", "gradients (hog)"),
    "colour": ("", "colours"),
}

SETTING = re.compile(r"--config\.([\w.]+)=(\S*)")
# What may be set without making another experiment: repetitions, and where things are.
FREE = {"seed", "path", "pictures", "scenes.data_dir", "localise"}
LOCAL = re.compile(r"(--config\.path=)\S*/(?=[^/\s]+/[^/\s]+)")  # where pictures are on this machine

Run = Mapping[str, Any]  # a report


def collect(workdirs: Iterable[Path], folder: Path) -> None:
    """Keeps the reports of finished runs of `nin_jax.detection.main`. Raises `UserError`."""
    storage.make_folder(folder)
    for workdir in workdirs:
        try:
            report = json.loads((workdir / "report.json").read_text())
            report = {key: report[key] for key in ("experiment", "seed", "peak_memory_mib")} | report
            report["command"] = LOCAL.sub(r"\1", report["command"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"--collect={workdir} is not a finished run of detection: {one_line(error)}") from error
        storage.write_whole(folder / f"{workdir.name}.json", json.dumps(_rounded(report), sort_keys=True) + "\n")


def collect_hcp(scores: Path, record: Path) -> None:
    """Keeps the average precision of each class, by the rule of VOC 2012. Raises `UserError`."""
    found = fusion.read(scores)
    if found.classes != VOC_CLASSES or len(found.scores) != VAL_2012:
        what = f"{len(found.scores)} pictures of {len(found.classes)} classes"
        raise UserError(f"--hcp={scores}: has {what}; VOC 2012 (val) has {VAL_2012} of 20")
    columns = zip(VOC_CLASSES, found.scores.T, found.labels.T, strict=True)
    precisions = {name: 100 * under_curve(ranking(of, there)) for name, of, there in columns}
    storage.write_whole(record, json.dumps(_rounded(precisions)) + "\n")


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(v) for key, v in value.items()}
    return round(value, 3) if isinstance(value, float) else value


def read(folder: Path) -> list[Run]:
    """The recorded runs, in the order of their names."""
    return [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]


def read_one(record: Path) -> dict[str, Any]:
    """A record that is one file; empty where there is none."""
    return json.loads(record.read_text()) if record.is_file() else {}


def generated(
    runs: Sequence[Run], hcp: Mapping[str, float], answers: Mapping[str, Mapping[str, Any]]
) -> dict[str, str]:
    """Every table as Markdown, by its name in the page.

    Args:
      runs: of detection.
      hcp: the average precision of HCP on VOC 2012 by class, in per cent; empty where it has not been run.
      answers: what an answer costs, by what was measured.
    """
    slides = {row.method: row.value for row in reported.ROWS if row.metric == "map_pct"}
    data = list(dict.fromkeys(run["experiment"].split(":")[0] for run in runs))
    detection = []
    for argument, (method, name) in METHODS.items():
        mine = [[r for r in runs if _is(r, experiment, argument) and as_it_stands(r)] for experiment in data]
        cells = [_mean([r["map_pct"] for r in of if "map_pct" in r]) for of in mine]
        detection.append([name, slides.get(method, ""), *cells])
    places = []
    for experiment in data:
        found = [r for r in runs if r["experiment"].split(":")[0] == experiment and r.get("localisation")]
        for network in dict.fromkeys(r["localisation"]["network"] for r in found):
            of = [r["localisation"] for r in found if r["localisation"]["network"] == network]
            keys = "maps_pct", "centre_pct", "random_pct", "pointing_pct", "centre_pointing_pct"
            asked = ", ".join(dict.fromkeys(str(o["asked"]) for o in of))
            places.append([_short(experiment), network, asked, *(_mean([o[key] for o in of]) for key in keys)])
    costs = [
        [
            f"`{run['command']}`".replace("|", r"\|"),
            f"{run['map_pct']:.2f}",
            f"{run['proposals']['a_picture']:.0f}, {run['proposals']['recall_pct']:.0f} %",
            f"{run['features_s_per_picture']:.2f}",
            f"{run['peak_memory_mib']:.0f}",
        ]
        for run in runs
        if "map_pct" in run
    ]
    held = [
        [
            f"`{what}`",
            str(row["hypotheses"]),
            f"{row['cpu_s']:.2f}",
            f"{row['pictures'][0]:,}, {row['pictures'][1]} different ones",
            *(str(row[key]) for key in ("first_mib", "second_mib", "last_mib", "peak_mib")),
        ]
        for what, row in answers.items()
    ]
    head = ["run", "hypotheses", "CPU s a picture", "pictures"]
    head += ["MiB: first 100", "second 100", "last 100", "peak"]
    voc = reported.VOC_2012
    methods = list(next(iter(voc.values())))
    ours = [f"{hcp[name]:.1f}" for name in VOC_CLASSES] if hcp else ["not run"] * len(VOC_CLASSES)
    ours.append(
        f"{statistics.fmean(hcp.values()):.1f}" if hcp else "not run"
    )  # of the categories, in the slide's order
    return {
        "Detection": pages.markdown(["features", "slides, ILSVRC %", *map(_short, data)], detection),
        "Localisation": pages.markdown(
            ["data", "network", "asked", "class map %", "centre box %", "random box %", "pointing %", "centre point %"],
            places,
        ),
        "Detection runs": pages.markdown(
            ["command", "mAP %", "boxes a picture, recall", "s a picture", "peak memory MiB"], costs
        ),
        "Answers": pages.markdown(head, held) if held else "None has been recorded.",
        "Slides: VOC 2012": pages.markdown(
            ["category", *methods, "HCP here"],
            [
                [category, *(f"{v:.1f}" for v in row.values()), mine]
                for (category, row), mine in zip(voc.items(), ours, strict=True)
            ],
        ),
    }


def _is(run: Run, experiment: str, argument: str) -> bool:
    name, _, given = run["experiment"].partition(":")
    return (name, given) == (experiment, argument)


def as_it_stands(run: Run) -> bool:
    """Whether a run is of its experiment as the file is now: others are listed, but are no part of a mean."""
    config = main_lib.load(*main_lib.find(run["experiment"], config_lib.experiments(detection=True)))
    settings = {key: value for key, value in SETTING.findall(run["command"]) if key not in FREE}
    return all(str(functools.reduce(getattr, key.split("."), config)) == value for key, value in settings.items())


def _short(experiment: str) -> str:
    """ "scenes" of "experiments/detect_scenes.py"."""
    return Path(experiment).stem.removeprefix("detect_")


def _mean(values: Sequence[float]) -> str:
    if not values:
        return "not run"
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{spread} (n = {len(values)})"


def tables_of(root: Path) -> dict[str, str]:
    """Those of what a checkout has recorded."""
    return generated(read(root / RESULTS), read_one(root / HCP), read_one(root / COSTS))


def main(argv: Sequence[str] | None = None, root: Path = tables.ROOT) -> None:
    """Runs the command line above, in a checkout."""
    parser = Parser("python -m nin_jax.paper.detection", __doc__)
    parser.add_argument("--collect", nargs="+", default=[], type=Path, metavar="RUN_DIR", help="finished runs to add")
    parser.add_argument("--hcp", type=Path, metavar="SCORES.json", help="scores of HCP on VOC 2012 (val) to add")
    given = parser.parse(sys.argv[1:] if argv is None else argv)
    if given.collect:
        collect(given.collect, root / RESULTS)
    if given.hcp:
        collect_hcp(given.hcp, root / HCP)
    pages.write(root / PAGE, tables_of(root))


if __name__ == "__main__":
    with exiting():
        main()
