"""One label an image: softmax cross-entropy, and the share of images whose largest logit is another class."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax


def objective(logits: jax.Array, labels: jax.Array, *, smoothing: float = 0.0) -> jax.Array:
    """What training minimises, float32 `[B]`: cross-entropy with smoothed labels (Szegedy et al. 2016).

        -sum over k of q_k log softmax(logits)[k],   q = (1 - smoothing) onehot(label) + smoothing / K

    which is the loss of `per_example` where `smoothing` is 0.
    """
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothing of {smoothing}: must be 0 or more, and less than 1")
    if not smoothing:
        return per_example(logits, labels)["loss"]
    wanted = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), smoothing)
    return optax.softmax_cross_entropy(logits, wanted)


def per_example(logits: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
    """Loss and error of each example.

    Args:
      logits: float32 `[B, K]`.
      labels: int32 `[B]`, 0 to K - 1.

    Returns:
      "loss": -log softmax(logits)[label], natural logarithm, and "error": 1 where the largest logit (the first of
      equal ones) is not the label's, else 0. Both float32 `[B]`.
    """
    return {
        "loss": optax.softmax_cross_entropy_with_integer_labels(logits, labels),
        "error": (jnp.argmax(logits, axis=-1) != labels).astype(jnp.float32),
    }
