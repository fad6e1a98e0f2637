"""Compiles the update of every recipe for accelerators that are not there, and notes what the compiler said.

    python -m benchmarks.recipes tpu:v5e:2x2|cuda:h100:1x1x4 [NAME ...]

All of them, or those whose name contains one of the words; what is recorded already is left out. In bfloat16, 8 images a
batch, and at most 16 maps a layer where a recipe says how many: a TPU's compiler takes a minute for larger ones. Recipes
that differ only in numbers (learning rates, weight decay, epochs, the images that they take) are one program.
hcp_voc.py wants VOC's devkit in NIN_JAX_VOC.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from benchmarks import measure
from benchmarks.accelerators import compile_step, compiler, estimate, make_ready
from nin_jax import console
from nin_jax import main as command
from nin_jax.devices.mesh import compiled_in_32_bits
from nin_jax.errors import UserError, one_line
from nin_jax.paper import tables
from nin_jax.runs import provenance

BATCH, MAPS = 8, 16
# Keys with which an update's program has the same operations.
SAME = {
    *(
        "seed",
        "data_dir",
        "train_split",
        "eval_split",
        "eval",
        "eval_batch_size",
        "bad_records",
        "batch_size",
        "epochs",
    ),
    *("eval_every_epochs", "checkpoint_every_epochs", "keep", "watchdog_seconds", "init_from", "workers", "rollbacks"),
    *("precision", "rollback_factor", "deviations", "class_map_bias"),
}


def narrowed(value: Any) -> Any:
    """Numbers of maps, in lists of lists, with at most `MAPS`, as tuples."""
    return tuple(narrowed(one) for one in value) if isinstance(value, list) else min(value, MAPS)


def _outline(value: Any) -> Any:
    """A config with, for each float, only whether it is 0, and without the numbers in calls such as "crop(pad=4)"."""
    if isinstance(value, dict):
        return {key: value[key] if key == "dataset" else _outline(value[key]) for key in value if key not in SAME}
    if isinstance(value, list):
        return [_outline(one) for one in value]
    if isinstance(value, str):
        return re.sub(r"=[\d.e-]+", "=", value)
    return bool(value) if isinstance(value, float) else value


def programs() -> list[list[str]]:
    """The recipes, in groups of those whose updates have the same operations."""
    groups: dict[str, list[str]] = {}
    for name, plain in tables.recipes().items():
        outline = _outline(plain)
        outline["schedule"] = {key: bool(value) for key, value in outline["schedule"].items()}
        if "widths" in outline["model"]:
            outline["model"]["widths"] = narrowed(outline["model"]["widths"])
        groups.setdefault(json.dumps(outline), []).append(name)
    return list(groups.values())


def compiled(target: str, name: str, folder: str) -> dict[str, Any]:
    """What the compiler makes of a recipe's update, or its error."""
    plain = tables.recipes()[name]
    flags = [f"--config={name}", f"--config.batch_size={BATCH}", "--config.precision=bfloat16"]
    if "widths" in plain["model"]:
        flags.append(f"--config.model.widths={narrowed(plain['model']['widths'])}")
    if where := {"folder": folder, "voc": os.environ.get("NIN_JAX_VOC")}.get(plain["dataset"].split("(")[0]):
        flags.append(f"--config.data_dir={where}")
    began = time.process_time()
    try:
        found = estimate(compile_step(command.parse(["recipes", *flags]).config, target))
    except (UserError, RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        return {"error": one_line(error)[:300]}
    kept = "update", "temporaries", "collectives", "state", "donated", "data_set_copies", "float64"
    return {key: found[key] for key in kept} | {"seconds": round(time.process_time() - began, 1)}


def main(target: str, words: list[str]) -> None:
    """Each program that was not compiled yet by this compiler."""
    make_ready(target)
    file = measure.RESULTS / "recipes.json"
    with tempfile.TemporaryDirectory() as folder, compiled_in_32_bits():
        noise = np.random.default_rng(0).integers(0, 256, (2, 50, 32, 32, 3), np.uint8)
        for i, pictures in enumerate(noise):
            (Path(folder) / str(i)).mkdir()
            for k, picture in enumerate(pictures):
                Image.fromarray(picture).save(Path(folder) / str(i) / f"{k}.png")
        for names in programs():
            if not any(word in names[0] for word in words or [""]):
                continue
            kept = measure.read("recipes")["rows"] if file.exists() else []
            asked = {"target": target, "compiler": compiler(target), "recipe": names[0]}
            done = any(asked.items() <= row.items() and "error" not in row for row in kept)
            if done:
                continue
            row = asked | {"recipes": names, "commit": provenance.commit()} | compiled(target, names[0], folder)
            console.say(f"{names[0]}: {row.get('error') or row['seconds']}")
            others = [one for one in kept if (one["target"], one["recipe"]) != (target, names[0])]
            measure.save("recipes", [*others, row])


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    with console.exiting():
        main(sys.argv[1], sys.argv[2:])
