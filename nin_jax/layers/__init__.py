"""The layers of the paper and of its rivals, as small pure functions and Flax modules. NHWC throughout."""
# ruff: noqa: F401

from nin_jax.layers.conv import Conv, by_platform, convolve, portable
from nin_jax.layers.dropout import Dropout
from nin_jax.layers.initialisers import gaussian, uniform
from nin_jax.layers.mlpconv import Layer, MLPConv
from nin_jax.layers.normalisation import BatchNorm, response_normalisation
from nin_jax.layers.pool import avg_pool, global_average_pool, max_pool
from nin_jax.layers.rivals import LocalConv, RadialBasis, StochasticPool, maxout
