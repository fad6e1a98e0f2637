"""A finished run as a trained network that others can load.

    python -m nin_jax.weights.publish RUN_DIR -o DIR [--data_dir=DIR] [--whitening] [--commit=HASH] [--licence=apache-2.0]

DIR becomes a folder in the layout of `training.safetensors`, and its name that of the network: `nin_jax.load(DIR)` loads it, and so
does "hf-hub:OWNER/NAME" once it is uploaded. The error in its card is measured here, of the file that is written, on every
example of the run's evaluation split. RUN_DIR has checkpoints or, where they were left out for their size,
`variables.safetensors` with the evaluated weights by path.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy
from flax.traverse_util import unflatten_dict

from nin_jax import config as config_lib
from nin_jax.arguments import Parser
from nin_jax.console import exiting, say
from nin_jax.data import splits
from nin_jax.devices.mesh import host
from nin_jax.errors import UserError, one_line
from nin_jax.paper import tables
from nin_jax.storage import make_folder, write_json, write_whole
from nin_jax.training import evaluate
from nin_jax.training.build import Run
from nin_jax.training.pretrained import CARD, CONFIG, SUMS, WEIGHTS, checksums
from nin_jax.training.safetensors import decode, encode, pack


def publish(
    workdir: Path,
    out: Path,
    *,
    data_dir: str | None = None,
    whitening: bool = False,
    commit: str = "",
    licence: str = "apache-2.0",
) -> dict[str, Any]:
    """Writes the folder `out`, and returns what its config.json says. Raises `UserError` for a run that is not finished.

    Args:
      workdir: the run directory.
      out: the folder, whose name becomes that of the network. A `SHA256SUMS` beside it is updated.
      data_dir: where the data set is prepared, if elsewhere than for the run.
      whitening: whether a whitening matrix may be written, which is larger than the network.
      commit: of the run, if its summary does not have it.
      licence: of the weights, as the Hub abbreviates it.
    """
    row = tables.result(workdir)
    if row is None:
        raise UserError(f"{workdir} is not finished: only a finished run is published")
    run, variables, stats = _trained(workdir, data_dir)
    if run.info.streamed:
        raise UserError(
            f"{workdir}: dataset {run.config.dataset} does not fit in memory, so its error is not measured here"
        )
    if run.info.multilabel:
        raise UserError(f"{workdir}: dataset {run.config.dataset} has several labels an image; a card says one error")
    split = run.load(run.config.eval_split)
    assert isinstance(split, tuple)
    tensors = pack(variables, stats, whitening=whitening)
    plain = {k: v for k, v in config_lib.to_dict(run.config).items() if k not in config_lib.NOT_THE_RUN}
    facts: dict[str, Any] = {
        "name": out.name,
        "config": plain,
        "dataset": splits.to_notes(run.info),
        "source": run.data.source,
        "recipe": tables.command(row["config"], row["overrides"]).strip("`"),
        "paper": tables.paper_value(row["config"], row["overrides"]),
        "trained": {key: row[key] for key in ("value", "epochs", "device", "devices", "precision", "seed")}
        | {"commit": row["commit"] or commit},
        "parameters": sum(np.size(p) for p in jax.tree.leaves(variables["params"])),
        "licence": licence,
    }
    blank = {"error_pct": None, "loss": None, "examples": 0, "split": run.config.eval_split}
    facts |= blank | measure(encode(tensors, facts | blank), *split)
    content = encode(tensors, facts)
    facts["sha256"] = hashlib.sha256(content).hexdigest()
    make_folder(out)
    write_whole(out / WEIGHTS, content)
    write_json(out / CONFIG, facts)
    write_whole(out / CARD, card(facts))
    if (out.parent / SUMS).exists():
        known = checksums(out.parent) | {out.name: facts["sha256"]}
        write_whole(
            out.parent / SUMS, "".join(f"{digest}  {name}/{WEIGHTS}\n" for name, digest in sorted(known.items()))
        )
    return facts


def _trained(workdir: Path, data_dir: str | None) -> tuple[Run, Mapping[str, Any], list[dict[str, Any]]]:
    """A run with its data set, the variables that it was evaluated with, and its fitted preprocessing."""
    config = config_lib.read(workdir / "config.json")
    config.data_dir = data_dir or config.data_dir
    if outside := config_lib.modules(config):
        raise UserError(f"{workdir / 'config.json'} names modules outside the zoo: {', '.join(outside)}")
    checked = config_lib.check(config)
    if (workdir / "checkpoints").is_dir():
        with jax.enable_x64(False):
            run = Run(checked, evaluate.trained_on(workdir))
            _, state = evaluate.restore(run, run.recipe(1), workdir)
            return run, host(state.variables), host(run.fitted(workdir, write=False))
    run, file = Run(checked), workdir / "variables.safetensors"
    try:
        tensors = safetensors.numpy.load_file(file)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{workdir} has no checkpoints, and {file.name} cannot be read: {one_line(error)}") from error
    variables = unflatten_dict({tuple(name.split("/")): tensor for name, tensor in tensors.items()})
    return run, variables, host(run.fitted(workdir, write=False))


def measure(content: bytes, images: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Error in per cent and mean loss (natural logarithm), over all images, of the network in the content of a file."""
    logits = decode(content, "the file").logits(images).astype(np.float64)
    shifted = logits - logits.max(-1, keepdims=True)
    losses = np.log(np.exp(shifted).sum(-1)) - shifted[np.arange(len(labels)), labels]
    wrong = int(np.sum(logits.argmax(-1) != labels))
    return {"error_pct": 100 * wrong / len(labels), "loss": round(float(losses.mean()), 6), "examples": len(labels)}


def card(facts: Mapping[str, Any]) -> str:
    """The model card: YAML for the Hub, of which JSON is a part, and Markdown for people."""
    dataset, name, trained = facts["dataset"], facts["name"], facts["trained"]
    error = f"{facts['error_pct']:.2f}"
    metrics = [
        {"type": "error", "name": f"{facts['split']} error (%)", "value": round(facts["error_pct"], 4)},
        {"type": "accuracy", "name": f"{facts['split']} accuracy (%)", "value": round(100 - facts["error_pct"], 4)},
    ]
    evaluated = {
        "task": {"type": "image-classification", "name": "Image classification"},
        "dataset": {"type": dataset["name"], "name": dataset["name"], "split": facts["split"]},
        "metrics": metrics,
    }
    head = {
        "library_name": "nin_jax",
        "license": facts["licence"],
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "network-in-network", "jax", "flax"],
        "datasets": [dataset["name"]],
        "model-index": [{"name": name, "results": [evaluated]}],
    }
    front = "\n".join(f"{key}: {json.dumps(value)}" for key, value in head.items())
    height, width, channels = dataset["image_shape"]
    commit = f", commit {trained['commit']}" if trained["commit"] else ""
    paper = re.sub(r"^[\d.]+", r"\g<0> %", facts["paper"])
    return f"""---
{front}
---

# {name}

A Network In Network (Lin, Chen and Yan 2013, [arXiv 1312.4400](https://arxiv.org/abs/1312.4400)) for {dataset["name"]}: images of
{height} x {width} x {channels}, {dataset["classes"]} classes, {facts["parameters"]:,} parameters.

```python
import nin_jax

classifier = nin_jax.load("{name}")  # or the path of this folder
```

| | |
|---|---|
| error of this file | **{error} %** of the {facts["examples"]:,} images of `{facts["split"]}`, mean loss {facts["loss"]:.4f}; again by `nin-jax eval {name}` |
| error that its run recorded, in {trained["precision"]} | {float(trained["value"]):.2f} % |
| the paper's error | {paper} |
| recipe | `{facts["recipe"]}` |
| trained | {float(trained["epochs"]):g} epochs on {trained["devices"]} x {" ".join(dict.fromkeys(trained["device"].split()))}, {trained["precision"]}, seed {trained["seed"]}{commit} |
| preprocessing, in the file | {", ".join(f"`{op}`" for op in facts["config"]["preprocess"])} |
| data | {facts["source"]} |
| licence of the weights | {facts["licence"]} |

`model.safetensors` has the kernels in float16 and all else in float32; its metadata says all of the above. One seed was
trained; how far others differ is not measured. The network knows the classes of {dataset["name"]} alone: it gives one of them to any
picture, and pictures unlike its training images are not what its error was measured on.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line above."""
    parser = Parser("python -m nin_jax.weights.publish", __doc__)
    parser.add_argument("workdir", type=Path, metavar="RUN_DIR")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="DIR", help="the folder that is written")
    parser.add_argument(
        "--data_dir", metavar="DIR", help="where the data set is prepared; default: where the run had it"
    )
    parser.add_argument("--whitening", action="store_true", help="write a whitening matrix too")
    parser.add_argument("--commit", default="", metavar="HASH", help="of the run, if its summary has none")
    parser.add_argument("--licence", default="apache-2.0", help="of the weights, as the Hub abbreviates it")
    args = vars(parser.parse(sys.argv[1:] if argv is None else argv))
    facts = publish(args.pop("workdir"), args.pop("out").resolve(), **args)
    say(
        f"{facts['name']}: {facts['error_pct']:.2f} % of {facts['examples']:,} images ({facts['split']}); SHA-256 {facts['sha256']}"
    )


if __name__ == "__main__":
    with exiting():
        main()
