"""What exporters write: a network with its numbers, and the function that it is."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from nin_jax.data import fitted
from nin_jax.devices.mesh import host
from nin_jax.errors import UserError, nearest
from nin_jax.layers import BatchNorm, portable
from nin_jax.models._stages import Network as Stages
from nin_jax.registry import Call, FittedOp
from nin_jax.training.predict import Predictor

NORM = "_norm"  # conv1_norm normalises what conv1 makes, see `layers.MLPConv`


class Network(NamedTuple):
    """A network that is trained no more.

    Attributes:
      model: computes in float32, whatever it was trained in.
      variables: its "params" and "batch_stats", on the host.
      image_shape: `[H, W, C]` of its images.
      preprocess, stats: ops and what was fitted of each; None where images come preprocessed.
      class_names: by index of the logits, where they are known.
    """

    model: nn.Module
    variables: Mapping[str, Any]
    image_shape: tuple[int, int, int]
    preprocess: Sequence[Call[FittedOp]] | None = None
    stats: fitted.Stats | None = None
    class_names: Sequence[str] = ()

    @classmethod
    def of(cls, source: Predictor | Network | tuple[nn.Module, Any, tuple[int, int, int]]) -> Network:
        """A network from a classifier, or from (model, variables, image shape)."""
        if isinstance(source, Network):
            return source
        if isinstance(source, Predictor):
            c = source
            network = cls(c.model, c.variables, c.info.image_shape, c.config.preprocess, c.stats, c.class_names)
        else:
            network = cls(*source)
        model = network.model.clone(dtype=jnp.float32) if hasattr(network.model, "dtype") else network.model
        variables = {"params": {}, "batch_stats": {}} | dict(network.variables)
        return network._replace(model=model, variables=host(variables), stats=host(network.stats))

    def without_preprocessing(self) -> Network:
        """The same for images that are preprocessed already."""
        return self._replace(preprocess=None, stats=None)

    def folded(self) -> Network:
        """The same network without batch normalisation, whose scale and shift lie in the kernels and biases before it.

            W' = W * s,   b' = beta - mean * s,   s = gamma / sqrt(var + epsilon)

        A network outside the zoo stays as it is.
        """
        if not isinstance(self.model, Stages) or not self.model.batch_norm:
            return self
        params: Any = flatten_dict(self.variables["params"])
        stats: Any = flatten_dict(self.variables["batch_stats"])
        plain = {path: value for path, value in params.items() if not path[-2].endswith(NORM)}
        for *scope, norm in {path[:-1] for path in stats}:
            conv = (*scope, norm.removesuffix(NORM))
            at = (*scope, norm)
            mean, var = (np.asarray(stats[*at, name], np.float64) for name in ("mean", "var"))
            s = params[*at, "scale"] / np.sqrt(var + BatchNorm.epsilon)
            plain[*conv, "kernel"] = np.asarray(params[*conv, "kernel"] * s, np.float32)
            plain[*conv, "bias"] = np.asarray(params[*at, "bias"] - mean * s, np.float32)
        model = self.model.clone(batch_norm=False)
        return self._replace(model=model, variables={"params": unflatten_dict(plain), "batch_stats": {}})

    @property
    def metadata(self) -> dict[str, str]:
        """What a file says of the network beside its numbers: "class_names" and "preprocess" (the ops), in JSON."""
        ops = None if self.preprocess is None else [str(op) for op in self.preprocess]
        return {"class_names": json.dumps(list(self.class_names)), "preprocess": json.dumps(ops)}

    @property
    def numbers(self) -> dict[str, Any]:
        """All arrays of the network, as `__call__` takes them."""
        preprocess = [] if self.stats is None else self.stats
        return {
            "params": self.variables["params"],
            "batch_stats": self.variables["batch_stats"],
            "preprocess": preprocess,
        }

    def __call__(self, numbers: Any, images: jax.Array, maps: Sequence[str] = ()) -> dict[str, jax.Array]:
        """Logits float32 `[B, K]` of `images` (`self.images`), and the maps of these names. Raises `UserError`."""
        if self.preprocess is not None:
            images = fitted.apply(self.preprocess, numbers["preprocess"], images)
        variables = {kind: numbers[kind] for kind in ("params", "batch_stats")}
        outputs: Any = self.model.apply(variables, images, train=False)
        logits, named = outputs
        for name in maps:
            if name not in named:
                raise UserError(f"maps: no map {name!r}: {nearest(name, named)}")
        return {"logits": logits} | {name: named[name] for name in maps}

    def images(self, batch: Any) -> jax.ShapeDtypeStruct:
        """Shape and dtype of a batch of its images, whose size may be symbolic."""
        dtype = jnp.float32 if self.preprocess is None else jnp.uint8
        return jax.ShapeDtypeStruct((batch, *self.image_shape), dtype)


@contextlib.contextmanager
def tracing() -> Iterator[None]:
    """Inside, networks are traced in the portable form, with float32 products on every device."""
    with portable(True), jax.enable_x64(False), jax.default_matmul_precision("float32"):
        yield
