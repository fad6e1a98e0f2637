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
    """A model by name: `Model(num_classes, **arguments)`, see its file for the arguments.

    Raises `errors.UserError` for an unknown name, an unknown argument, or a value that an argument does not allow.
    """
    from nin_jax import registry

    entry = registry.find("models", name)
    others = {key: value for key, value in arguments.items() if key in registry.NOT_OF_A_CONFIG}
    chosen = {key: value for key, value in arguments.items() if key not in others}
    chosen = registry.check_arguments(f"model {name}", registry.legal_arguments("models", entry), chosen)
    return entry.Model(num_classes, **chosen, **others)


def load_run(workdir: str, *, trust: bool = False) -> Predictor:
    """The newest good checkpoint of a run directory, with its preprocessing. Raises `errors.UserError`.

    `trust` allows a config.json that names modules outside the zoo, which loading then executes.
    """
    from nin_jax.training.load import Predictor

    return Predictor(workdir, trust=trust)
