"""docs/performance.md from the recorded measurements: every table between two marks, nothing typed.

python -m benchmarks.report
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import measure, scaling

DOC = Path(__file__).parent.parent / "docs" / "performance.md"


def markdown(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def where(name: str) -> str:
    """What a file's figures were measured with."""
    r = measure.read(name)
    machine, versions = r["machine"], r["versions"]
    shown = ", ".join(
        f"{package} {versions[package]}" for package in ("python", "jax", "flax", "torch") if package in versions
    )
    return (
        f"{machine['processor']}, {machine['cores']} cores, {machine['device']}; {shown}; commit {r['commit'][:9]}"
        f"{'+' * r['commit'].endswith('+')}, {r['date']}."
    )


def each(name: str, table: Callable[[str], str]) -> str:
    """The table of the last run, and of those that were kept beside it as NAME_SUFFIX.json, each with where it was."""
    kept = sorted(file.stem for file in measure.RESULTS.glob(f"{name}*.json"))
    return "\n\n".join(f"{where(one)}\n\n{table(one)}" for one in kept)


def training() -> str:
    """Ours and PyTorch's."""
    return each("training", against_pytorch)


def against_pytorch(name: str) -> str:
    """One run's ratios."""
    rows = []
    for row in measure.read(name)["rows"]:
        middle, low, high = measure.ratio(row, "PyTorch", "nin_jax")
        rate = {name: row["images"] / seconds for name, seconds in row["median"].items()}
        cells = [row["what"], row["network"], row["batch"], row["precision"], row["setting"]]
        cells += [f"{rate['PyTorch']:,.1f}", f"{rate['nin_jax']:,.1f}", f"**{middle:.2f}** ({low:.2f} to {high:.2f})"]
        rows.append([*cells, len(row["seconds"]["PyTorch"])])
    head = ["what", "network", "batch", "precision", "PyTorch's best setting", "PyTorch, images/s", "nin_jax, images/s"]
    return markdown([*head, "ratio (over the rounds)", "rounds"], rows)


def trials() -> str:
    """All settings of PyTorch that were tried, and sizes of an evaluation's batches."""
    rows = [r for r in measure.read("training")["rows"] if r.get("trials")]
    return markdown(
        ["what", "network", "precision", "setting", "images/s"],
        [
            [r["what"], r["network"], r["precision"], name, f"{r['images'] / seconds:,.1f}"]
            for r in rows
            for name, seconds in r["trials"].items()
        ],
    )


def changes() -> str:
    """Every way of doing a thing, against the one that is used."""
    return each("changes", against_used)


def against_used(name: str) -> str:
    """One run's ratios."""
    rows = []
    for row in measure.read(name)["rows"]:
        for name in row["median"]:
            if name != row["used"]:
                middle, low, high = measure.ratio(row, name, row["used"])
                cells = [row["what"], name, f"{1e3 * row['median'][name]:,.1f}", row["used"]]
                rows.append(
                    [*cells, f"{1e3 * row['median'][row['used']]:,.1f}", f"{middle:.2f} ({low:.2f} to {high:.2f})"]
                )
    return markdown(["what", "instead", "ms", "in use", "ms", "ratio (over the rounds)"], rows)


def startup() -> str:
    """Seconds of whole processes."""
    return markdown(
        ["from the command to", "seconds (median)", "from", "to", "n"],
        [
            [r["what"], f"{r['median']:.2f}", f"{min(r['seconds']):.2f}", f"{max(r['seconds']):.2f}", len(r["seconds"])]
            for r in measure.read("startup")["rows"]
        ],
    )


def inside() -> str:
    """What input and checkpoints cost."""
    rows = {r["what"]: r for r in measure.read("inside")["rows"]}
    drawn, checkpoint = rows["input"], rows["checkpoint"]
    middle, low, high = measure.ratio(drawn, "the same batch", "drawn batches")
    saved = checkpoint["median"]
    return markdown(
        ["what", "measured"],
        [
            ["an update on drawn batches of 50,000 pictures", f"{drawn['median']['drawn batches']:.3f} s"],
            ["the same on one batch again and again", f"{drawn['median']['the same batch']:.3f} s"],
            [
                "rate of the first in parts of the second's",
                f"{middle:.3f} ({low:.3f} to {high:.3f}, n = {len(drawn['seconds']['drawn batches'])})",
            ],
            [
                f"the loop waits for a checkpoint of {checkpoint['bytes'] / 1e6:.1f} MB",
                f"{1e3 * saved['save returns']:.0f} ms",
            ],
            ["until it is on disk, with nothing else to do", f"{1e3 * saved['on disk']:.0f} ms"],
            ["that in parts of a 60 s epoch", f"{100 * saved['on disk'] / 60:.2f} %"],
        ],
    )


def memory() -> str:
    """Peaks against the formula."""
    rows = []
    for r in measure.read("inside")["rows"]:
        if r["what"] == "memory":
            formula = 3 * 2**28 + r["data"] + 2 * r["state"] + 2.5 * r["maps"] + 0.4 * r["evaluated"]
            sizes = [r["data"], r["state"], r["maps"], r["evaluated"], formula, r["peak"]]
            rows.append([r["network"], r["batch"], *(f"{size / 2**20:,.0f}" for size in sizes)])
    head = ["network", "batch", "data set", "state", "maps of the batch", "of an evaluation's", "formula", "peak"]
    return markdown(head, rows)


def replicas() -> str:
    """Bytes and equality over forced devices."""
    rows = []
    for r in measure.read("scaling")["rows"]:
        sizes = sorted(r["all_reduces"], reverse=True)
        rows.append(
            [
                r["what"],
                r["devices"],
                r["batch"],
                f"{4 * r['params']:,}",
                " + ".join(f"{s:,}" for s in sizes) or "none",
                f"{r['norm']:.6f}",
            ]
        )
    return markdown(
        [
            "scaling",
            "devices",
            "batch",
            "bytes of the parameters",
            "bytes all-reduced an update",
            "norm of the parameters",
        ],
        rows,
    )


def predicted() -> str:
    """The model's efficiencies."""
    rows = []
    for images in (128, 1024):
        for devices in (8, 64):
            step, sums = scaling.model(images, devices)
            rows.append(
                [images, devices, f"{1e3 * step:.2f}", f"{1e3 * sums:.3f}", f"{100 * step / (step + sums):.0f} %"]
            )
    return markdown(["images a device", "accelerators", "compute, ms", "all-reduce, ms", "efficiency"], rows)


def stream() -> str:
    """Pictures a second and core."""
    rows = []
    recorded = measure.read("stream")
    cores = recorded["machine"]["cores"]
    for r in recorded["rows"]:
        if r["what"] == "rate":
            middle, low, high = measure.ratio(r, "decoder", "stream")
            one = r["one core"]["median"]
            cells = [r["pictures"], *(f"{1 / s:,.0f}" for s in (one["decoder"], one["decoded and cut"]))]
            cells += [f"{1 / r['median'][k] / cores:,.0f}" for k in ("decoder", "decoded and cut", "stream")]
            alone = measure.ratio(r, "decoded and cut", "stream")[0]
            ratios = [f"**{middle:.2f}** ({low:.2f} to {high:.2f})", f"{alone:.2f}"]
            rows.append([*cells, *ratios, len(r["seconds"]["stream"])])
    head = ["pictures", "decoder, alone on a core", "decoded and cut, alone on a core", "decoder", "decoded and cut"]
    head += ["stream", "stream in parts of the decoder (over the rounds)", "in parts of decoded and cut", "rounds"]
    return markdown(head, rows)


def stream_besides() -> str:
    """Packing, processes and memory."""
    rows = {r["what"]: r for r in measure.read("stream")["rows"]}
    pack, watched, mib = rows["packing"], rows["memory"]["bytes"], 2**20
    kinds = {"0": "threads of the run's process", "1": "one process besides", "2": "two processes besides"}
    shown = {k: sorted(v) for k, v in rows["workers"]["images_per_s"].items()}
    faster, low, high = measure.ratio(rows["decoders"], "Pillow", "simplejpeg")
    lines = [
        ["a packed picture to an array by simplejpeg, in times of Pillow", f"{faster:.2f} ({low:.2f} to {high:.2f})"],
        ["packing a picture to a short side of 256", f"{1 / pack['median']['packing']:,.0f} images/s on a core"],
        ["size that is left", f"{100 * pack['packed'] / pack['bytes']:.0f} %"],
        *(
            [f"stream of packed pictures, {kinds[k]}", f"{v[1]:,.0f} images/s ({v[0]:,.0f} to {v[-1]:,.0f})"]
            for k, v in shown.items()
        ),
        ["size of the process after the first 1,024 pictures", f"{watched[0] / mib:,.0f} MiB"],
        [f"largest until {rows['memory']['images']:,}", f"{max(watched) / mib:,.0f} MiB"],
        ["at the end", f"{watched[-1] / mib:,.0f} MiB"],
    ]
    return markdown(["what", "measured"], lines)


TABLES: dict[str, Callable[[], str]] = {
    f.__name__: f
    for f in (training, trials, changes, startup, inside, memory, replicas, predicted, stream, stream_besides)
}


def render(text: str) -> str:
    """The page with every table, and every line of where it was measured, as the recorded measurements have them."""
    for name, make in TABLES.items():
        text = _between(text, f"table: {name}", make())
    for name in ("startup", "inside", "scaling", "stream"):
        text = _between(text, f"where: {name}", where(name))
    return text


def _between(text: str, mark: str, content: str) -> str:
    begin, end = f"<!-- {mark} -->", f"<!-- end of {mark} -->"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    if len(pattern.findall(text)) != 1:
        raise ValueError(f"{DOC} must have the mark {begin} and its end, once")
    return pattern.sub(lambda _: f"{begin}\n\n{content}\n\n{end}", text)


def main() -> None:
    """Writes the page anew."""
    DOC.write_text(render(DOC.read_text()))


if __name__ == "__main__":
    main()
