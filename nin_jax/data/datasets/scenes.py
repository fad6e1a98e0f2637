"""Scenes: real CIFAR-10 (or other) images as objects on textured ground, several labels for a picture, of any number.

They are composed when a run starts (`data.objects.scenes`), training scenes of training images and test scenes of test images. An
image is the whole scene, or, for HCP, a bag of hypotheses; see `data.objects.hypotheses`.
"""

from __future__ import annotations

import numpy as np

from nin_jax import registry
from nin_jax.data import splits
from nin_jax.data.objects import annotations, hypotheses
from nin_jax.data.objects.scenes import scene
from nin_jax.data.splits import Info, Split, take
from nin_jax.errors import UserError


def info(
    data_dir: str | None = None,
    *,
    of: str = "cifar10",
    train: int = 200,
    test: int = 200,
    side: int = 96,
    seed: int = 0,
    size: int = 32,
    clusters: int = 0,
    each: int = 1,
    smallest: float = 400.0,
) -> Info:
    """The facts. Raises `UserError`.

    Args:
      data_dir: of the data set of the objects.
      of: the classification data set whose images are the objects.
      train, test: number of scenes of each split.
      side: height and width of a scene.
      seed: of the scenes.
      size, clusters, each: as of `voc`.
      smallest: area of a hypothesis in pixels squared.
    """
    del seed, smallest
    registry.zoo_call("datasets", of)
    base = splits.facts(registry.call("datasets", of), data_dir)
    if base.streamed or base.multilabel:
        raise UserError(f"dataset scenes(of={of!r}): must be a data set that fits in memory, with one label an image")
    if min(train, test) < 1 or side < 2 * max(base.image_shape[:2]):
        raise UserError(
            f"dataset scenes(train={train}, test={test}, side={side}): 1 or more; two images a side or more"
        )
    shape = hypotheses.shape(size, base.image_shape[-1], clusters, each)
    facts = Info("scenes", base.classes, shape, {"train": train, "test": test}, "made by datasets/scenes.py")
    return facts._replace(class_names=base.names, multilabel=True)


def load(
    split: str,
    data_dir: str | None = None,
    *,
    bad_records: str = "stop",
    of: str = "cifar10",
    train: int = 200,
    test: int = 200,
    side: int = 96,
    seed: int = 0,
    size: int = 32,
    clusters: int = 0,
    each: int = 1,
    smallest: float = 400.0,
) -> Split:
    """uint8 `[N, M * size, size, C]` and int32 `[N, K]`, 1 or -1, see `training.tasks.multilabel`; the same at every call."""
    facts = info(data_dir, of=of, train=train, test=test, side=side, size=size, clusters=clusters, each=each)
    dataset = registry.call("datasets", of)

    def read(name: str) -> Split:
        whole = dataset.entry.load(name, data_dir, **dataset.arguments)
        base = splits.facts(dataset, data_dir)
        (images, kinds), _ = splits.usable(whole, base, f"split {name!r} of {dataset}", bad_records)
        made = [scene(images, kinds, i, seed=seed, side=side) for i in range(facts.splits[name])]
        bags = [image(s.image, size=size, clusters=clusters, each=each, smallest=smallest) for s in made]
        there = [annotations.presence(s.labels, np.zeros(len(s.labels), bool), facts.classes) for s in made]
        return np.stack(bags), np.stack(there)

    return take(split, facts.splits, read, facts.name)


def image(
    pixels: np.ndarray,
    *,
    size: int = 32,
    clusters: int = 0,
    each: int = 1,
    smallest: float = 400.0,
    **scenes: object,
) -> np.ndarray:
    """The image that a network sees of a picture uint8 `[H, W, C]`."""
    del scenes
    return hypotheses.bag(pixels, size, clusters, each, "windows", smallest)
