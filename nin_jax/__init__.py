"""Network In Network (Lin, Chen, Yan 2013) in JAX/Flax: models, training, evaluation.

list_models() -> names; create_model(name, num_classes=...) -> Flax module; load_run(DIR) -> a trained `Predictor`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flax.linen import Module

    from nin_jax.training.load import Predictor

__version__ = "0.1.0"
__all__ = ["__version__", "create_model", "list_models", "load_run"]


def list_models() -> list[str]:
    """Names of the models of the zoo."""
    from nin_jax import registry

    return registry.names("models")


def create_model(name: str, num_classes: int, **arguments: Any) -> Module:
    """A model by name: `Model(num_classes, **arguments)`, see its file for the arguments. Raises `errors.UserError`."""
    from nin_jax import registry

    return registry.find("models", name).Model(num_classes, **arguments)


def load_run(workdir: str, *, trust: bool = False) -> Predictor:
    """The newest good checkpoint of a run directory, with its preprocessing. Raises `errors.UserError`.

    `trust` allows a config.json that names modules outside the zoo, which loading then executes.
    """
    from nin_jax.training.load import Predictor

    return Predictor(workdir, trust=trust)
