"""report.html of a run of detection: pictures with their boxes, curves, and the worst errors by kind. One file, no script."""

from __future__ import annotations

import base64
import html
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from nin_jax import storage
from nin_jax.data.objects.boxes import iou
from nin_jax.detection.pictures import Objects, Pictures
from nin_jax.training.average_precision import Curve, Found, Truth, judged

KINDS = {
    "localisation": "the right class, 0.1 to 0.5 over an object of it",
    "duplicate": "a second box of an object that is found already",
    "confusion": "0.1 or more over an object of another class",
    "background": "less than 0.1 over any object",
}
SHOWN, WORST = 12, 6  # pictures; errors of each kind
SIDE = 280  # most pixels of a picture in the page
STYLE = """
:root { color-scheme: light dark; font: 15px/1.45 system-ui, sans-serif }
body { margin: 0 auto; max-width: 76rem; padding: 1rem }
h1 { font-size: 1.4rem } h2 { font-size: 1.1rem; margin-top: 2rem } h3 { font-size: 1rem; margin-bottom: .3rem }
.grid { display: grid; gap: .8rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 15rem), 1fr)) }
figure { margin: 0 } figcaption { font-size: .85rem; overflow-wrap: anywhere } svg { display: block; width: 100% }
.wide { overflow-x: auto } table { border-collapse: collapse } td, th { padding: .15rem .6rem; text-align: right }
td:first-child, th:first-child { text-align: left } tr { border-bottom: 1px solid #8885 }
.truth { fill: none; stroke: #0072b2; stroke-dasharray: 5 3 } .found { fill: none; stroke: #d55e00 }
rect { stroke-width: 2; vector-effect: non-scaling-stroke } .axis { fill: none; stroke: #888; vector-effect: non-scaling-stroke }
.curves { grid-template-columns: repeat(auto-fill, minmax(8rem, 1fr)) }
.line { fill: none; stroke: #d55e00; stroke-width: 2; vector-effect: non-scaling-stroke }
"""


class Wrong(NamedTuple):
    """A detection that is wrong: its class, score, picture's number, box and kind of error."""

    name: str
    score: float
    picture: int
    box: np.ndarray
    kind: str


def errors(
    label: int, name: str, found: Mapping[str, Found], listed: Sequence[Objects], first: int
) -> tuple[list[Wrong], int]:
    """The wrong ones of the `first` detections of a class, by kind (Hoiem et al. 2012), and how many are right.

    Hoiem takes as many as there are objects, and counts duplicates as errors of localisation; here they stand apart.
    Detections of difficult objects are left out.
    """
    rows: list[tuple[float, Wrong | None]] = []
    for i, objects in enumerate(listed):
        of = found.get(objects.name)
        if of is None or not len(of.scores):
            continue
        own = objects.labels == label
        right, counted = judged(Truth(objects.boxes[own], objects.difficult[own]), of, "voc")
        share = iou(of.boxes, objects.boxes)
        for j in np.flatnonzero(counted):
            same, other = share[j, own].max(initial=0.0), share[j, ~own].max(initial=0.0)
            by_overlap = "duplicate" if same >= 0.5 else "localisation" if same >= 0.1 else ""
            kind = by_overlap or ("confusion" if other >= 0.1 else "background")
            score = float(of.scores[j])
            rows.append((score, None if right[j] else Wrong(name, score, i, of.boxes[j], kind)))
    best = sorted(rows, key=lambda row: -row[0])[:first]
    wrong = [row for _, row in best if row is not None]
    return wrong, len(best) - len(wrong)


def picture(image: np.ndarray, boxes: Iterable[tuple[np.ndarray, str]]) -> str:
    """An image uint8 `[H, W, 3]` with boxes, each with its style: "truth" or "found"."""
    height, width = image.shape[:2]
    scaled, file = Image.fromarray(image), io.BytesIO()
    scaled.thumbnail((SIDE, SIDE))
    scaled.save(file, "jpeg", quality=70)
    data = base64.b64encode(file.getvalue()).decode()
    rects = "".join(
        f'<rect class="{style}" x="{b[0]:.1f}" y="{b[1]:.1f}" width="{b[2] - b[0]:.1f}" height="{b[3] - b[1]:.1f}"/>'
        for b, style in boxes
    )
    return (
        f'<svg viewBox="0 0 {width} {height}"><image width="{width}" height="{height}" '
        f'href="data:image/jpeg;base64,{data}"/>{rects}</svg>'
    )


def curve(of: Curve) -> str:
    """Precision over recall, both from 0 to 1."""
    found = np.flatnonzero(np.diff(of.recall, prepend=0.0) > 0)  # where another object is found
    points = " ".join(
        f"{100 * r:.1f},{100 - 100 * p:.1f}" for r, p in zip(of.recall[found], of.precision[found], strict=True)
    )
    return (
        '<svg viewBox="-2 -2 104 104" role="img" aria-label="precision over recall"><path class="axis" '
        f'd="M0 0V100H100M0 50H100M50 0V100"/><polyline class="line" points="{points}"/></svg>'
    )


def _figure(drawn: str, caption: str) -> str:
    return f"<figure>{drawn}<figcaption>{html.escape(caption)}</figcaption></figure>"


def _examples(results: Sequence[Any], test: Pictures) -> Iterable[str]:
    """Pictures with their objects and as many detections, the most certain of all classes."""
    for i in np.unique(np.linspace(0, len(test) - 1, SHOWN).round().astype(int)):
        objects = test.listed[i]
        rows = [
            (float(s), r.name, box)
            for r in results
            if objects.name in r.found
            for s, box in zip(r.found[objects.name].scores[:5], r.found[objects.name].boxes[:5], strict=True)
        ]
        best = sorted(rows, key=lambda row: -row[0])[: max(1, len(objects.boxes))]
        drawn = picture(test.image(i), [*((b, "truth") for b in objects.boxes), *((b, "found") for *_, b in best)])
        truth = ", ".join(test.classes[k] for k in objects.labels) or "nothing"
        yield _figure(drawn, f"{objects.name}: {truth}. Found: " + ", ".join(f"{n} {s:.2f}" for s, n, _ in best))


def write(workdir: Path, report: Mapping[str, Any], results: Sequence[Any], test: Pictures) -> None:
    """Writes report.html. Raises `StorageFailed`.

    Args:
      workdir: the run directory.
      report: what report.json holds.
      results: of each class, see `pipeline.Result`.
      test: the test pictures.
    """
    wrong: list[Wrong] = []
    rows = []
    for r in results:
        of, right = errors(test.classes.index(r.name), r.name, r.found, test.listed, r.objects[1])
        wrong += of
        counts, ap = Counter(e.kind for e in of), "" if r.ap is None else f"{100 * r.ap:.1f}"
        cells = [html.escape(r.name), ap, *r.objects, right, *(counts[kind] for kind in KINDS)]
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    head = "".join(f"<th>{t}</th>" for t in ("class", "AP %", "training", "test", "right", *KINDS))
    parts = [
        f"<h1>Detection: mAP {report['map_pct']:.2f} %</h1><p>VOC 2007's rule, over the classes below, in {len(test)} test "
        f"pictures; trained on {report['pictures'][0]}. Of each class, the columns from “right” on count its most certain "
        "detections, as many as it has objects.</p>",
        f'<div class="wide"><table><tr>{head}</tr>{"".join(rows)}</table></div>',
        "<h2>Precision over recall</h2>",
        f'<div class="grid curves">{"".join(_figure(curve(r.curve), r.name) for r in results if r.ap is not None)}</div>',
        "<h2>Pictures</h2><p>Dashed blue: objects. Orange: the most certain boxes of all classes, as many as objects.</p>",
        f'<div class="grid">{"".join(_examples(results, test))}</div><h2>Worst errors</h2>',
    ]
    for kind, text in KINDS.items():
        worst = sorted((e for e in wrong if e.kind == kind), key=lambda e: -e.score)[:WORST]
        figures = [
            _figure(
                picture(
                    test.image(e.picture), [*((b, "truth") for b in test.listed[e.picture].boxes), (e.box, "found")]
                ),
                f"{test.listed[e.picture].name}: {e.name} {e.score:.2f}",
            )
            for e in worst
        ]
        shown = f'<div class="grid">{"".join(figures)}</div>' if figures else "<p>None.</p>"
        parts.append(f"<h3>{kind.capitalize()}</h3><p>{text[0].upper()}{text[1:]}.</p>{shown}")
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}"><title>Detection</title><style>{STYLE}</style>'
        f"<body>{''.join(parts)}</body></html>\n"
    )
    storage.write_whole(workdir / "report.html", page)
