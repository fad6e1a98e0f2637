"""What a trained run knows: its confusion matrix, its worst mistakes with their evidence, its first filters."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict
from PIL import Image

from nin_jax.data.pictures import to_picture
from nin_jax.errors import UserError
from nin_jax.training.build import Run
from nin_jax.training.predict import Classifier

MOST_EXAMPLES = 10_000  # of the evaluation split, the first ones
MOST_MISTAKES = 24
MOST_CLASSES = 100  # of a confusion matrix that a person can still read
MOST_FILTERS = 256
COLOUR = (213, 94, 0)  # of the evidence


def png(pixels: np.ndarray, *, optimize: bool = False) -> str:
    """A data: address of an image uint8 `[H, W, C]`, C 1 (grey), 3 (colour) or 4 (with transparency)."""
    file = io.BytesIO()
    to_picture(pixels).save(file, "png", optimize=optimize)
    return address(file.getvalue())


def address(content: bytes) -> str:
    """A data: address of the content of a PNG file."""
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def tint(evidence: np.ndarray) -> str:
    """Evidence float32 `[H, W]`, 0 to 1, as one colour whose opacity it is."""
    pixels = np.empty((*evidence.shape, 4), np.uint8)
    pixels[..., :3] = COLOUR
    pixels[..., 3] = np.round(evidence * 200)
    return png(pixels)


def filters(params: Any) -> list[str]:
    """The filters of the first convolution over an image, each scaled to its own range; none if it has other channels."""
    kernels = {
        "/".join(path): np.asarray(value) for path, value in flatten_dict(params).items() if path[-1] == "kernel"
    }
    first = next(
        (k for _, k in sorted(kernels.items()) if k.ndim == 4 and k.shape[0] > 1 and k.shape[2] in (1, 3)), None
    )
    if first is None:
        return []
    low, high = first.min((0, 1, 2)), first.max((0, 1, 2))
    scaled = np.round(255 * (first - low) / np.maximum(high - low, 1e-12)).astype(np.uint8)
    return [png(scaled[..., i]) for i in range(min(MOST_FILTERS, first.shape[-1]))]


def report(classifier: Classifier) -> dict[str, Any]:
    """A trained network on the evaluation split of its run. Raises `UserError`, also where its data set is not at hand.

    Returns:
      "step", "examples", "split", "error_pct"; "classes", the names; "confusion" `[K][K]`, examples by label and
      prediction, or None with more than `MOST_CLASSES`; "mistakes", the wrong answers whose true class got the lowest
      probability, each with "index", "label", "named", "probability" of the named class, "image" and "evidence" for
      both; "filters".
    """
    run = Run(classifier.config, classifier.info)
    split = run.load(run.config.eval_split)
    if not isinstance(split, tuple):
        raise UserError(f"{run.config.dataset} is streamed from disk: evaluate it with --mode=eval")
    if run.info.multilabel:
        raise UserError(f"{run.config.dataset} has several labels an image: evaluate it with --mode=eval")
    images, labels = (np.asarray(part[:MOST_EXAMPLES]) for part in split)
    logits = classifier.logits(images).astype(np.float64)
    logits -= logits.max(1, keepdims=True)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    named = logits.argmax(1)
    wrong = np.flatnonzero(named != labels)
    worst = wrong[np.argsort(probabilities[wrong, labels[wrong]])][:MOST_MISTAKES]
    classes = classifier.class_names
    confusion = np.zeros((len(classes),) * 2, np.int64)
    np.add.at(confusion, (labels, named), 1)
    return {
        "step": classifier.step,
        "examples": len(labels),
        "split": run.config.eval_split,
        "error_pct": 100 * len(wrong) / len(labels),
        "classes": list(classes),
        "confusion": confusion.tolist() if len(classes) <= MOST_CLASSES else None,
        "mistakes": [
            {
                "index": int(i),
                "label": classes[labels[i]],
                "named": classes[named[i]],
                "probability": float(probabilities[i, named[i]]),
                "image": png(images[i]),
                "evidence": {classes[c]: evidence(classifier, images[i], int(c)) for c in (named[i], labels[i])},
            }
            for i in worst
        ],
        "filters": filters(classifier.params),
    }


def evidence(classifier: Classifier, image: Any, index: int) -> str | None:
    """The overlay of a class over an image; None where the network has no class maps."""
    try:
        return tint(classifier.evidence(image, index))
    except UserError:
        return None


def answer(classifier: Classifier, picture: Image.Image) -> dict[str, Any]:
    """What a network sees in a picture: its most probable classes, each with its evidence. Raises `UserError`."""
    [image] = classifier.read(picture)
    [prediction] = classifier.classify([image])
    top = [{**guess._asdict(), "evidence": evidence(classifier, image, guess.index)} for guess in prediction.top]
    return {"step": classifier.step, "image": png(image), "top": top}
