"""The update or the evaluation of an experiment, compiled for accelerators that are not there, and what the compiler makes of it.

    python -m benchmarks.accelerators --target=tpu:v5e:2x2|cuda:h100:1x1xN --config=experiments/NAME.py[:ARG]
        [--batch_size=N] [--updates=K] [--evaluation] [--textbook[=data]] [--hlo=FILE] [--record] [--config.KEY=VALUE ...]

Prints a table and a line of JSON: the compiler's estimate, not a time. Nothing is run on an accelerator. `--batch_size` is
that of all devices together, `--updates` the most of a dispatch, `--hlo` the file for the program's text. `--evaluation`
compiles instead the evaluation of a batch, `--textbook` the network as a user would write it first, on a batch of images that
are preprocessed already, one update a dispatch; with `=data` it takes its batches from such images on the device, in our
loop. `--record` keeps the row for docs/performance.md. It needs the extra aot-cuda or aot-tpu.

The time of a roofline is what arithmetic takes at the device's peak or what bytes take at its bandwidth, whichever is longer,
with the vendor's figures (`PEAKS`). Nothing on a real device is faster; much is slower.

    python -m benchmarks accelerators      # all rows of docs/performance.md; with --record the first command makes one
"""

from __future__ import annotations

import argparse
import fcntl
import functools
import importlib.metadata
import importlib.util
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from benchmarks import measure
from benchmarks.hlo import Cost, Program
from benchmarks.textbook import textbook
from nin_jax import console, storage
from nin_jax import main as command
from nin_jax.config import Config
from nin_jax.data import fitted, memory
from nin_jax.data.source import Batch
from nin_jax.data.splits import parts
from nin_jax.devices.mesh import (
    AXIS,
    check_batch,
    check_precision,
    compiled_in_32_bits,
    replicated_like,
    shared_out_like,
)
from nin_jax.devices.replicas import compile_replicas
from nin_jax.errors import UserError, nearest, one_line
from nin_jax.runs import provenance
from nin_jax.training.build import Run
from nin_jax.training.describe import multiply_adds
from nin_jax.training.state import init_state
from nin_jax.training.step import eval_steps, predict, train_steps

DISPATCH = 100  # updates, as on an accelerator


class Peak(NamedTuple):
    """What a device can do at most, by its vendor's data sheet: dense operations and bytes per second."""

    bfloat16: float
    tensorfloat32: float
    float32: float
    bytes: float


# Products of float32 take a TPU six passes in bfloat16.
PEAKS = {
    "h100": Peak(989e12, 494e12, 67e12, 3.35e12),
    "v5e": Peak(197e12, 197e12, 197e12 / 6, 0.819e12),
    "v6e": Peak(918e12, 918e12, 918e12 / 6, 1.64e12),
}
CARDS = {"h100": Path(__file__).parent / "h100.txtpb"}
# By platform: the module of its plugin, the package whose version is noted, and the extra with them.
PLUGINS = {
    "cuda": ("jax_cuda13_plugin", "jax-cuda13-plugin", "aot-cuda"),
    "tpu": ("libtpu", "libtpu", "aot-tpu"),
}
ESTIMATE = "the compiler's estimate, not a time"


class Compiled(NamedTuple):
    """A compiled update or evaluation.

    Attributes:
      program: what the compiler made.
      text: its HLO.
      state: arrays of the state, all of which should be donated; 0 in an evaluation.
      elements: numbers in the images of the data set on a device; 0: it is not there.
      updates: the most of a dispatch.
      operations: 2 for each multiply-add of the products and convolutions of the network and its preprocessing, on a
        device, as the textbook counts them.
    """

    program: jax.stages.Compiled
    text: str
    state: int
    elements: int
    updates: int
    operations: int


def devices(target: str) -> np.ndarray:
    """The devices of "tpu:TOPOLOGY" or "cuda:CARD:1x1xN". Raises `UserError` where it or its plugin is not there."""
    platform, _, rest = target.partition(":")
    if platform not in PLUGINS:
        raise UserError(f"--target={target}: unknown platform {platform!r}: {nearest(platform, PLUGINS)}")
    module, package, extra = PLUGINS[platform]
    if importlib.util.find_spec(module) is None:
        raise UserError(f"--target={target}: {package} is not installed; python -m pip install -e '.[{extra}]'")
    if platform == "cuda":
        card, _, shape = rest.partition(":")
        if card not in CARDS:
            raise UserError(f"--target={target}: unknown card {card!r}: {nearest(card, CARDS)}")
        if not re.fullmatch(r"[1-9]\d*x[1-9]\d*x[1-9]\d*", shape):
            raise UserError(f"--target={target}: {shape!r} must be slices x hosts x cards, such as 1x1x8")
        described: dict[str, Any] = {"topology": shape, "target_config": CARDS[card].read_text()}
        name = card
    else:
        described, name = {}, rest
    try:
        topology = topologies.get_topology_desc(name, platform, **described)
    except Exception as error:  # a plugin raises as it likes
        raise UserError(f"--target={target}: {one_line(error)[:300]}") from error
    return np.array(topology.devices).reshape(-1)


def compile_step(
    config: Config, target: str, updates: int = DISPATCH, *, plain: str = "", evaluation: bool = False
) -> Compiled:
    """Compiles the update of an experiment, or its evaluation of a batch; with `plain` that of the textbook's network,
    given a "batch" or drawing it from the "data" on the device.

    Raises `UserError` where the config does not fit the target.
    """
    run = Run(config)
    run.mesh = mesh = Mesh(devices(target), (AXIS,), axis_types=(AxisType.Auto,))
    check_batch(config.batch_size, mesh, config.accumulate)
    check_precision(config.precision, list(mesh.devices.flat))
    shape, size = run.info.image_shape, config.batch_size
    sizes = {**run.data.splits, **run.data.composed}
    examples = sum(stop - start for _, start, stop in parts(config.train_split, sizes, run.data.name))
    recipe, stats, like = run.recipe(examples // size), [], jax.ShapeDtypeStruct
    label = (run.info.classes,) if run.info.multilabel else ()  # the shape of an image's
    if plain:
        recipe = recipe._replace(model=textbook(run.model), preprocess=(), augment=())
    else:  # the shapes of what is fitted do not depend on what it is fitted on
        few = np.random.default_rng(0).integers(0, 256, (64, *shape), np.uint8)
        stats = replicated_like(fitted.fit(config.preprocess, few), mesh)
    if split := plain == "batch" or run.info.streamed:
        views = (1,) if evaluation else ()
        images = like((size, *views, *shape), jnp.float32 if plain else jnp.uint8)
        weight = like((size,), jnp.float32) if evaluation else None
        data: Any = shared_out_like(Batch(images, like((size, *label), jnp.int32), weight), mesh)
        draw, updates = (lambda data, step: data), 1
    else:
        images: Any = like((examples, *shape), jnp.float32) if plain else like((examples, memory.row(shape)), jnp.uint8)
        whole = replicated_like(memory.Arrays(images, like((examples, *label), jnp.int32)), mesh)  # pyright: ignore
        in_order, shuffled = memory.InOrder, functools.partial(memory.Shuffled, seed=config.seed, mesh=mesh)
        source = (in_order if evaluation else shuffled)(whole, shape, batch_size=size)
        data, draw = source.like, source.draw
    init = functools.partial(init_state, recipe, image_shape=shape)
    state, *numbers = replicated_like(
        (jax.eval_shape(init, like((), jnp.uint32)), like((), jnp.uint32), like((), jnp.int32)), mesh
    )
    if evaluation:
        updates, donate = 1, ()
        steps, arguments = eval_steps([recipe], draw), ((state.variables,), data, (stats,), numbers[1])
    else:
        donate = (0,)
        steps, arguments = train_steps(recipe, draw, updates), (state, data, stats, *numbers)
    # pmap, which compiles to the same program, wants devices that can hold an array
    shares = False, split, *(False,) * (len(arguments) - 2)
    replicated = compile_replicas(steps, arguments, mesh, "shard_map", split=shares, donate=donate)
    elements = 0 if split else examples * math.prod(shape)
    text = replicated.program.as_text()
    assert text is not None

    def forward(variables: Any, stats: Any, image: jax.Array) -> jax.Array:
        return jnp.sum(predict(recipe, variables, stats, image)[0])

    once = forward if evaluation else jax.grad(forward)
    operations = 2 * (size // mesh.size) * multiply_adds(once, state.variables, stats, like((1, *shape), jnp.uint8))
    kept = 0 if evaluation else len(jax.tree.leaves(state))
    return Compiled(replicated.program, text, kept, elements, updates, operations)


def estimate(compiled: Compiled) -> dict[str, Any]:
    """What the compiler thinks that an update or an evaluation costs on each device, and what its program does."""
    program, plan = Program(compiled.text), compiled.program.memory_analysis()

    def shown(cost: Cost) -> dict[str, Any]:
        priced = {"cycles": cost.cycles, "unpriced": dict(sorted(cost.unpriced.items()))} if program.tiled else {}
        return {**priced, "bytes": cost.bytes, "kernels": cost.kernels}

    assert plan is not None
    return {
        "updates": compiled.updates,
        "operations": compiled.operations,
        "update": shown(program.update()),
        "dispatch": shown(program.besides()),
        "temporaries": plan.temp_size_in_bytes,
        "arguments": plan.argument_size_in_bytes,
        "collectives": program.collectives(),
        "state": compiled.state,
        "donated": program.donated(),
        "data_set_copies": program.copies(compiled.elements) if compiled.elements else [],
        "float64": program.float64(),
    }


def roofline(row: dict[str, Any]) -> tuple[float, float]:
    """The least seconds of an update for its arithmetic and for its bytes, by `PEAKS`."""
    peak = PEAKS[row["target"].split(":")[1]]
    return row["operations"] / getattr(peak, row["precision"]), row["update"]["bytes"] / peak.bytes


def make_ready(target: str) -> None:
    """What has to be done before a process compiles for a target."""
    if target.startswith("cuda"):  # trying kernels needs the card
        os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_gpu_autotune_level=0"
    else:
        alone()


def compiler(target: str) -> str:
    """The versions of jax and of what compiles for a target."""
    _, package, _ = PLUGINS[target.split(":")[0]]
    return f"jax {jax.__version__}, {package} {importlib.metadata.version(package)}"


@functools.cache
def alone() -> int:
    """Waits until no other process of this command has libtpu, of which a machine runs one at a time.

    The lock is a descriptor that only the end of the process closes: a file of Python's would be closed before libtpu is.
    """
    lock = os.open(Path(tempfile.gettempdir()) / "nin_jax-libtpu.lock", os.O_RDWR | os.O_CREAT, 0o666)
    fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def show(row: dict[str, Any]) -> None:
    """The table of one row, and the row."""
    update, sums, (arithmetic, moved) = row["update"], row["collectives"], roofline(row)
    lines = [
        ("floating-point operations", f"{row['operations']:,}"),
        ("ms by roofline: arithmetic, bytes", f"{1e3 * arithmetic:.3f}, {1e3 * moved:.3f}"),
        ("bytes read and written", f"{update['bytes']:,}"),
        ("kernels", f"{update['kernels']:,}"),
        ("bytes once a dispatch", f"{row['dispatch']['bytes']:,}"),
        ("temporary memory, bytes", f"{row['temporaries']:,}"),
        ("memory of the arguments, bytes", f"{row['arguments']:,}"),
        ("collectives, bytes", ", ".join(f"{kind} {size:,}" for kind, size in sums) or "none"),
        ("donated arrays of the state", f"{row['donated']} of {row['state']}"),
        ("copies of the data set", ", ".join(row["data_set_copies"]) or "none"),
        ("arrays of float64", str(row["float64"])),
    ]
    if "cycles" in update:
        unpriced = ", ".join(f"{count} x {op}" for op, count in update["unpriced"].items()) or "none"
        lines = [("estimated cycles", f"{update['cycles']:,}"), ("not among them", unpriced), *lines]
    kind = f"textbook, given its {row['textbook']}" if row["textbook"] else "nin_jax"
    title = f"{row['config']}, {row['precision']}, batch {row['batch_size']}, {kind}, {row['target']}: {ESTIMATE}"
    console.table(title, [f"of an {row['what']}, on each device", ""], lines)
    print(json.dumps(row))


def of_command_line(argv: list[str]) -> None:
    """Compiles and shows what the flags ask for. Raises `UserError`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accelerators", allow_abbrev=False, description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--target", required=True)
    parser.add_argument("--batch_size", type=int)
    parser.add_argument("--updates", type=int, default=DISPATCH)
    for switch in ("--evaluation", "--record"):
        parser.add_argument(switch, action="store_true")
    parser.add_argument("--textbook", nargs="?", const="batch", default="", choices=("batch", "data"))
    parser.add_argument("--hlo", type=Path)
    args, flags = parser.parse_known_args(argv)
    if args.updates < 1:
        raise UserError(f"--updates={args.updates}: must be 1 or more")
    if args.batch_size is not None:
        flags.append(f"--config.batch_size={args.batch_size}")
    config = command.parse(["accelerators", *flags]).config
    make_ready(args.target)
    with compiled_in_32_bits():
        compiled = compile_step(config, args.target, args.updates, plain=args.textbook, evaluation=args.evaluation)
        found = estimate(compiled)
    if args.hlo is not None:
        storage.write_whole(args.hlo, compiled.text)
    name = next(flag.split("=", 1)[1] for flag in flags if flag.startswith("--config="))
    asked = {"target": args.target, "config": name, "precision": config.precision, "batch_size": config.batch_size}
    asked |= {"what": "evaluation" if args.evaluation else "update", "textbook": args.textbook}
    row = {**asked, "compiler": compiler(args.target), "commit": provenance.commit(), **found}
    show(row)
    if args.record:
        kept = measure.read("accelerators")["rows"] if (measure.RESULTS / "accelerators.json").exists() else []
        same = [asked.items() <= other.items() for other in kept]
        place = same.index(True) if any(same) else len(kept)
        measure.save("accelerators", [*kept[:place], row, *kept[place + 1 :]])


# Target, images of a batch, further flags; each for our network and for the textbook's, an update also with its data.
RECORDED = (
    ("cuda:h100:1x1x1", 1024, ""),
    ("tpu:v5e:2x2", 4096, ""),
    ("cuda:h100:1x1x1", 128, ""),
    ("tpu:v5e:2x2", 512, ""),
    ("cuda:h100:1x1x1", 1024, "--config.precision=float32"),
    ("tpu:v5e:2x2", 4096, "--config.precision=float32"),
    ("cuda:h100:1x1x1", 1024, "--evaluation"),
    ("tpu:v5e:2x2", 4096, "--evaluation"),
    ("cuda:h100:1x1x4", 4096, ""),
    ("tpu:v6e:2x2", 4096, ""),
)
# More devices, for docs/scaling.md: our network alone.
SCALED = (
    *((f"tpu:v5e:{n}x{n}", batch) for n in (4, 8, 16) for batch in (8192, 1024)),
    *((f"cuda:h100:1x{n}x8", 8192) for n in (1, 2, 8)),
    ("cuda:h100:1x8x8", 1024),
)


def main() -> None:
    """CIFAR-10's network, in bfloat16 unless said otherwise, each row in a process of its own."""
    kinds = "", "--textbook", "--textbook=data"
    pairs = [(*row, kind) for row in RECORDED for kind in (kinds[:2] if row[2] else kinds)]
    for target, batch, flag, kind in [*pairs, *((*row, "", "") for row in SCALED)]:
        flags = [f"--target={target}", f"--batch_size={batch}", "--config=experiments/cifar10.py", "--record"]
        flags += ["--config.precision=bfloat16", *filter(None, (flag, kind))]
        subprocess.run([sys.executable, "-m", "benchmarks.accelerators", *flags], check=True)


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")  # the process itself needs no accelerator, and should take none
    with console.exiting():
        of_command_line(sys.argv[1:])
