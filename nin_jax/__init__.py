"""Network In Network (Lin, Chen, Yan 2013) in JAX/Flax: models, trained networks, training, evaluation.

>>> import nin_jax
>>> from nin_jax.data.datasets import digits
>>> images, labels = digits.load("test[:3]")  # uint8 [3, 8, 8, 1]
>>> classifier = nin_jax.load("nin.digits")
>>> [prediction.name for prediction in classifier.classify(images)]
['5', '0', '9']
>>> classifier.evidence(images[0], "5").shape
(8, 8)

Everything is imported when it is first used: `import nin_jax` and `list_models` do without JAX.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nin_jax.weights.zoo import create_model, create_transform, load, resolve_model_data_config, to_nnx

    load_run = load

__version__ = "0.1.0"
__all__ = [
    "__version__",
    "create_model",
    "create_transform",
    "list_models",
    "list_pretrained",
    "load",
    "load_run",
    "resolve_model_data_config",
    "samples",
    "to_nnx",
]


def list_models(filter: str = "*", pretrained: bool = False) -> list[str]:
    """Names of the models of the zoo that match a pattern; with `pretrained`, of the trained networks, MODEL.TAG.

    >>> list_models("*imagenet*")
    ['nin_imagenet']
    >>> list_models("*digits", pretrained=True)
    ['nin.digits']
    """
    import fnmatch

    from nin_jax import registry
    from nin_jax.training import pretrained as shipped

    return shipped.names(filter) if pretrained else fnmatch.filter(registry.names("models"), filter)


def list_pretrained() -> list[str]:
    """Names of the trained networks that come with the package, as `load` and `create_model` take them."""
    return list_models(pretrained=True)


def samples() -> dict[str, Path]:
    """Pictures to try a network on, PNG files by class: a test image of each class of CIFAR-10 and of MNIST.

    >>> str(samples()["cat"].relative_to(Path(__file__).parent))
    'data/samples/cat.png'
    """
    return {file.stem: file for file in sorted((Path(__file__).parent / "data" / "samples").glob("*.png"))}


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if not TYPE_CHECKING:  # a type checker knows the names from above, and finds a misspelt one

    def __getattr__(name: str) -> Any:
        """The names of `__all__` that are not above."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from nin_jax.weights import zoo

        return getattr(zoo, "load" if name == "load_run" else name)
