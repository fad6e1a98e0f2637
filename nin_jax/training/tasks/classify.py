"""One label per image: softmax cross-entropy, and the share of images whose largest logit is of another class."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

TOP_5_FROM = 100  # fewest classes for a top-5 error


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
      equal ones) is not the label's, else 0; with 100 classes or more also "top5_error": 1 if the label's is not among
      the five largest. All float32 `[B]`.
    """
    metrics = {
        "loss": optax.softmax_cross_entropy_with_integer_labels(logits, labels),
        "error": (jnp.argmax(logits, axis=-1) != labels).astype(jnp.float32),
    }
    if logits.shape[-1] >= TOP_5_FROM:
        own = jnp.take_along_axis(logits, labels[:, None], axis=-1)
        later = jnp.arange(logits.shape[-1])[None, :] > labels[:, None]
        behind = jnp.sum((logits < own) | ((logits == own) & later), axis=-1)  # none if a logit is NaN
        metrics["top5_error"] = (behind < logits.shape[-1] - 5).astype(jnp.float32)
    return metrics


def combine(logits: jax.Array) -> jax.Array:
    """Averages several predictions for each example: log of the mean over v of softmax(logits[:, v]).

    Args:
      logits: float32 `[B, V, K]`, from several views of an image, or from several networks.

    Returns:
      float32 `[B, K]`, whose softmax is the mean of the softmax outputs.
    """
    return jax.nn.logsumexp(jax.nn.log_softmax(logits), axis=1) - jnp.log(jnp.float32(logits.shape[1]))
