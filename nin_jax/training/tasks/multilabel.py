"""Any number of labels for an image: HCP's squared loss (Wei et al. 2014, section 3.3), and VOC's mean average precision.

Labels are int32 `[B, K]`, as in VOC's lists: 1: the class is in the image; -1: it is not; 0: only objects of it are that VOC
calls difficult, which count neither way.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from nin_jax.training.average_precision import mean_precision
from nin_jax.training.tasks.classify import combine as combine

MULTILABEL = True


def objective(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """What training minimises, float32 `[B]`: the loss of `per_example`."""
    return per_example(logits, labels)["loss"]


def per_example(logits: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
    """Loss and error of each image.

    Args:
      logits: float32 `[B, K]`.
      labels: int32 `[B, K]`, see above.

    Returns:
      "loss": the sum, over the classes that count, of (p_k - y_k / sum of y)^2, with p = softmax(logits) and y_k = 1 for
      classes in the image, else 0; and "error": 1 where the class of the largest logit is not in the image, else 0. Both
      float32 `[B]`.
    """
    there = (labels > 0).astype(jnp.float32)
    wanted = there / jnp.maximum(jnp.sum(there, -1, keepdims=True), 1.0)
    loss = jnp.sum(jnp.where(labels == 0, 0.0, jnp.square(jax.nn.softmax(logits) - wanted)), -1)
    counted = jnp.where(labels == 0, -jnp.inf, logits)
    first = jnp.take_along_axis(there, jnp.argmax(counted, -1, keepdims=True), -1)[:, 0]
    return {"loss": loss, "error": 1.0 - first}


def probabilities(logits: np.ndarray) -> np.ndarray:
    """softmax(logits), float64 `[N, K]`. SciPy's would change the warnings of a notebook that loads a network."""
    powers = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def of_split(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The metrics of a whole split, 0 to 1, of logits float32 `[N, K]` and labels int32 `[N, K]`.

    Returns:
      those of `average_precision.mean_precision`, images ranked by softmax(logits), and "error": 1 - map.
    """
    found = mean_precision(probabilities(logits), labels)
    return {"error": 1 - found["map"], **found}
