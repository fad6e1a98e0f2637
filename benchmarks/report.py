"""Writes the tables of docs/performance.md, and of the model in docs/scaling.md, from the recorded measurements.

python -m benchmarks.report
"""

from __future__ import annotations

import collections
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import measure, scaling
from benchmarks.accelerators import roofline
from nin_jax.paper import pages
from nin_jax.paper.pages import markdown

DOC = Path(__file__).parent.parent / "docs" / "performance.md"
SCALING = DOC.with_name("scaling.md")
DEVICES = tuple(2**k for k in range(9))  # of the model in docs/scaling.md


def rows(name: str) -> list[dict[str, Any]]:
    """The rows of a measurement."""
    return measure.read(name)["rows"]


def where(name: str) -> str:
    """The machine and versions of a measurement."""
    r = measure.read(name)
    machine, versions, commit = r["machine"], r["versions"], r["commit"]
    shown = ", ".join(f"{name} {versions[name]}" for name in ("python", "jax", "flax", "torch") if name in versions)
    shown += f"; `XLA_FLAGS={machine['flags']}`" if "flags" in machine else ""
    return (
        f"{machine['processor']}, {machine['cores']} cores, {machine['device']}; {shown}; "
        f"commit {commit[:9]}{'+' * commit.endswith('+')}, {r['date']}."
    )


def each(name: str, table: Callable[[str], str]) -> str:
    """The table of the last run and of those kept beside it as NAME_SUFFIX.json, each with its machine."""
    kept = sorted(file.stem for file in measure.RESULTS.glob(f"{name}*.json"))
    return "\n\n".join(f"{where(one)}\n\n{table(one)}" for one in kept)


def spread(row: dict[str, Any], slow: str, fast: str, form: str = "{:.2f}") -> str:
    """`measure.ratio` as text: "1.24 (1.17 to 1.29)"."""
    middle, low, high = measure.ratio(row, slow, fast)
    return f"{form.format(middle)} ({low:.2f} to {high:.2f})"


def training() -> str:
    """Our training and evaluation against PyTorch's."""

    def table(name: str) -> str:
        head = ["what", "network", "batch", "precision", "PyTorch's best setting", "PyTorch, images/s"]
        return markdown(
            [*head, "nin_jax, images/s", "ratio (over the rounds)", "rounds"],
            [
                [
                    *(r[key] for key in ("what", "network", "batch", "precision", "setting")),
                    *(f"{r['images'] / r['median'][side]:,.1f}" for side in ("PyTorch", "nin_jax")),
                    spread(r, "PyTorch", "nin_jax", "**{:.2f}**"),
                    len(r["seconds"]["PyTorch"]),
                ]
                for r in rows(name)
            ],
        )

    return each("training", table)


def trials() -> str:
    """All settings of PyTorch that were tried, and sizes of an evaluation's batches."""
    return markdown(
        ["what", "network", "precision", "setting", "images/s"],
        [
            [r["what"], r["network"], r["precision"], name, f"{r['images'] / seconds:,.1f}"]
            for r in rows("training")
            for name, seconds in r.get("trials", {}).items()
        ],
    )


def changes() -> str:
    """Every alternative, against the form in use."""

    def table(name: str) -> str:
        return markdown(
            ["what", "instead", "ms", "in use", "ms", "ratio (over the rounds)"],
            [
                [
                    r["what"],
                    other,
                    f"{1e3 * seconds:,.1f}",
                    used,
                    f"{1e3 * r['median'][used]:,.1f}",
                    spread(r, other, used),
                ]
                for r in rows(name)
                for used in (r["used"],)
                for other, seconds in r["median"].items()
                if other != used
            ],
        )

    return each("changes", table)


def startup() -> str:
    """Seconds of whole processes."""
    return markdown(
        ["from the command to", "seconds (median)", "from", "to", "n"],
        [
            [r["what"], *(f"{s:.2f}" for s in (r["median"], min(r["seconds"]), max(r["seconds"]))), len(r["seconds"])]
            for r in rows("startup")
        ],
    )


def inside() -> str:
    """What input and checkpoints cost."""
    drawn, checkpoint = ({r["what"]: r for r in rows("inside")}[what] for what in ("input", "checkpoint"))
    seconds, saved = drawn["median"], checkpoint["median"]
    middle, low, high = measure.ratio(drawn, "the same batch", "drawn batches")
    return markdown(
        ["what", "measured"],
        [
            ["a step on batches drawn from 50,000 images", f"{seconds['drawn batches']:.3f} s"],
            ["the same on one batch again and again", f"{seconds['the same batch']:.3f} s"],
            [
                "rate of the first / rate of the second",
                f"{middle:.3f} ({low:.3f} to {high:.3f}, n = {len(drawn['seconds']['drawn batches'])})",
            ],
            [
                f"the loop waits for a checkpoint of {checkpoint['bytes'] / 1e6:.1f} MB",
                f"{1e3 * saved['save returns']:.0f} ms",
            ],
            ["until it is on disk, with nothing else to do", f"{1e3 * saved['on disk']:.0f} ms"],
            ["that as part of a 60 s epoch", f"{100 * saved['on disk'] / 60:.2f} %"],
        ],
    )


def memory() -> str:
    """Peak memory against the formula."""
    lines = []
    for r in (r for r in rows("inside") if r["what"] == "memory"):
        formula = 3 * 2**28 + r["data"] + 2 * r["state"] + 2.5 * r["maps"] + 0.4 * r["evaluated"]
        sizes = [r["data"], r["state"], r["maps"], r["evaluated"], formula, r["peak"]]
        lines.append([r["network"], r["batch"], *(f"{size / 2**20:,.0f}" for size in sizes)])
    head = ["network", "batch", "data set", "state", "maps of the batch", "of an evaluation's", "formula", "peak"]
    return markdown(head, lines)


def replicas() -> str:
    """Bytes and equality over forced devices."""
    head = ["scaling", "devices", "batch", "bytes of the parameters", "bytes all-reduced per step"]
    return markdown(
        [*head, "norm of the parameters"],
        [
            [
                *(r[key] for key in ("what", "devices", "batch")),
                f"{4 * r['params']:,}",
                " + ".join(f"{size:,}" for size in sorted(r["all_reduces"], reverse=True)) or "none",
                f"{r['norm']:.6f}",
            ]
            for r in rows("scaling")
        ],
    )


def strong() -> str:
    """Strong scaling by the model: a batch of one size on more and more devices."""
    lines = []
    for kind in scaling.LINKS:
        for batch in (128, 1024, 8192):
            speeds = {n: scaling.efficiency(kind, batch / n, n, batch) for n in DEVICES if n <= batch}
            half = max(n for n, part in speeds.items() if part >= 0.5)
            shown = [
                f"{1e3 * sum(scaling.model(kind, batch / n, n)):.3f} ({100 * speeds[n]:.0f} %)" if n in speeds else ""
                for n in (1, 8, 64, 256)
            ]
            lines.append([kind, f"{batch:,}", *shown, half])
    return markdown(
        ["accelerator", "batch", *(f"on {n}, ms" for n in (1, 8, 64, 256)), "half the ideal speed up to"], lines
    )


def weak() -> str:
    """Weak scaling by the model: so many images on each device."""
    lines = []
    for kind in scaling.LINKS:
        for images in (16, 128, 1024):
            compute = 1e3 * scaling.model(kind, images, 1)[0]
            cells = [
                f"{1e3 * scaling.model(kind, images, n)[1]:.3f} ({100 * scaling.efficiency(kind, images, n, images):.0f} %)"
                for n in (8, 64, 256)
            ]
            lines.append([kind, f"{images:,}", f"{compute:.3f}", *cells])
    head = ["accelerator", "images a device", "compute, ms", *(f"all-reduce on {n}, ms" for n in (8, 64, 256))]
    return markdown(head, lines)


def small_parts() -> str:
    """Updates in bfloat16 on TPUs v5e, by how many images each has."""
    found = [
        (r["batch_size"] // scaling.devices(r), r)
        for r in rows("accelerators")
        if r["target"].startswith("tpu:v5e")
        and (r["what"], r["precision"], r["textbook"]) == ("update", "bfloat16", "")
    ]
    lines = []
    for images, r in sorted(found, key=lambda one: (-one[0], one[1]["target"])):
        cycles, (arithmetic, moved) = r["update"]["cycles"], roofline(r)
        sent = f"{sum(size for _, size in r['collectives']):,}"
        cells = [f"{1e3 * max(arithmetic, moved):.3f}", f"{cycles / 1e6:.2f}", f"{cycles / images / 1e3:.1f}", sent]
        lines.append([f"{images:,}", r["target"], f"{r['batch_size']:,}", *cells])
    head = ["images a device", "compiled for", "batch", "roofline, ms", "cycles, M", "cycles an image, thousands"]
    return markdown([*head, "bytes all-reduced"], lines)


def stream() -> str:
    """Images a second and core."""
    cores, lines = measure.read("stream")["machine"]["cores"], []
    for r in (r for r in rows("stream") if r["what"] == "rate"):
        alone = [f"{1 / r['one core']['median'][k]:,.0f}" for k in ("decoder", "decoded and cut")]
        together = [f"{1 / r['median'][k] / cores:,.0f}" for k in ("decoder", "decoded and cut", "stream")]
        whole = measure.ratio(r, "decoded and cut", "stream")[0]
        ratios = [spread(r, "decoder", "stream", "**{:.2f}**"), f"{whole:.2f}", len(r["seconds"]["stream"])]
        lines.append([r["pictures"], *alone, *together, *ratios])
    head = ["images", "decoder, alone on a core", "decoded and cropped, alone on a core", "decoder"]
    head += ["decoded and cropped", "stream", "stream / decoder (over the rounds)", "stream / decoded and cropped"]
    return markdown([*head, "rounds"], lines)


def stream_besides() -> str:
    """Packing, processes and memory."""
    found, mib = {r["what"]: r for r in rows("stream")}, 2**20
    pack, watched = found["packing"], found["memory"]["bytes"]
    kinds = {"0": "threads of the run's process", "1": "one extra process", "2": "two extra processes"}
    shown = {k: sorted(v) for k, v in found["workers"]["images_per_s"].items()}
    return markdown(
        ["what", "measured"],
        [
            ["rate of decoding a packed image, simplejpeg / Pillow", spread(found["decoders"], "Pillow", "simplejpeg")],
            ["packing an image to a short side of 256", f"{1 / pack['median']['packing']:,.0f} images/s on a core"],
            ["packed size / original size", f"{100 * pack['packed'] / pack['bytes']:.0f} %"],
            *(
                [f"stream of packed images, {kinds[k]}", f"{v[1]:,.0f} images/s ({v[0]:,.0f} to {v[-1]:,.0f})"]
                for k, v in shown.items()
            ),
            ["size of the process after the first 1,024 images", f"{watched[0] / mib:,.0f} MiB"],
            [f"largest until {found['memory']['images']:,}", f"{max(watched) / mib:,.0f} MiB"],
            ["at the end", f"{watched[-1] / mib:,.0f} MiB"],
        ],
    )


def gpu() -> str:
    """Updates on a GPU, each way of one after the other."""
    lines = [
        [
            r["what"],
            r["network"],
            r["device"],
            r["precision"],
            r["batch"],
            side,
            f"{1e3 * s:.3f}",
            f"{r['batch'] / s:,.0f}",
        ]
        for r in rows("gpu")
        for side, s in r["median"].items()
    ]
    head = ["what", "network", "GPU", "precision", "batch", "by", "ms an update", "images/s"]
    return f"{where('gpu')}\n\n{markdown(head, lines)}"


def accelerators() -> str:
    """What compilers say of an update or an evaluation on accelerators; in brackets, as a part of the textbook's."""
    recorded = measure.read("accelerators")
    keys, lines = ("target", "what", "precision", "batch_size"), []
    theirs = {tuple(r[key] for key in keys): r["update"] for r in recorded["rows"] if r["textbook"] == "batch"}
    for r in recorded["rows"]:
        update, devices = r["update"], scaling.devices(r)
        textbook = None if r["textbook"] == "batch" else theirs.get(tuple(r[key] for key in keys))
        shown = {}
        for key, form in (("bytes", "{:.2f}"), ("cycles", "{:.1f}")):
            scale = 1e9 if key == "bytes" else 1e6
            part = f" ({update[key] / textbook[key]:.2f})" if key in update and textbook else ""
            shown[key] = form.format(update[key] / scale) + part if key in update else ""
        unpriced = collections.Counter[str]()
        for op, count in update.get("unpriced", {}).items():
            unpriced[op.split(" ")[0]] += 0 if op.startswith("copy in") else count
        lines.append(
            [
                *(r[key] for key in keys[:3]),
                f"{r['batch_size'] // devices:,}",
                {"": "nin_jax", "batch": "textbook", "data": "textbook with data"}[r["textbook"]],
                shown["bytes"],
                update["kernels"],
                f"{r['temporaries'] / 1e6:,.0f}",
                shown["cycles"],
                ", ".join(f"{n} {op}" for op, n in (+unpriced).items()),
                *(f"{1e3 * seconds:.2f}" for seconds in roofline(r)),
            ]
        )
    head = ["target", "of", "precision", "images a device", "network", "GB read and written", "kernels"]
    head += ["temporary memory, MB", "cycles, M", "without an estimate of cycles", "ms by arithmetic", "ms by bytes"]
    compilers = "; ".join(dict.fromkeys(r["compiler"] for r in recorded["rows"]))
    commits = ", ".join(dict.fromkeys(r["commit"][:9] + "+" * r["commit"].endswith("+") for r in recorded["rows"]))
    return f"{compilers}; commits {commits}; {recorded['date']}.\n\n{markdown(head, lines)}"


TABLES = (
    training,
    trials,
    changes,
    startup,
    inside,
    memory,
    replicas,
    gpu,
    accelerators,
    stream,
    stream_besides,
)


def modelled() -> dict[str, str]:
    """The tables of docs/scaling.md, by their names in the page."""
    return {"strong": strong(), "weak": weak(), "small_parts": small_parts()}


def generated() -> dict[str, str]:
    """Every table, and every line that says where it was measured, by its name in the page."""
    lines = {f"where {name}": where(name) for name in ("startup", "inside", "scaling", "stream")}
    return {table.__name__: table() for table in TABLES} | lines


def main() -> None:
    """Rewrites the tables in both pages."""
    pages.write(DOC, generated())
    pages.write(SCALING, modelled())


if __name__ == "__main__":
    main()
