"""One label an image: softmax cross-entropy, and the share of images whose largest logit is another class."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax


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
