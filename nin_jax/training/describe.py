"""--mode=describe: the layers of a config's network and what they cost, without data and without training."""

from __future__ import annotations

import json
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from nin_jax.console import table
from nin_jax.data import memory
from nin_jax.layers import portable
from nin_jax.training.build import Run


def multiply_adds(f: Any, *arguments: Any) -> int:
    """Multiply-adds of all convolutions and matrix products in a function.

    They are those of the textbook form (`layers.portable`), without what a CPU saves. Padding counts, as is usual in
    papers: a convolution costs out height x out width x out maps x kernel height x kernel width x in maps for each
    image.
    """

    def count(jaxpr: Any) -> int:
        total = 0
        for eqn in jaxpr.eqns:
            out = math.prod(eqn.outvars[0].aval.shape) if eqn.outvars else 0
            if eqn.primitive.name == "conv_general_dilated":
                kernel, dims = eqn.invars[1].aval.shape, eqn.params["dimension_numbers"].rhs_spec
                total += out * math.prod(kernel) // kernel[dims[0]]
            elif eqn.primitive.name == "dot_general":
                contracted = eqn.params["dimension_numbers"][0][0]
                total += out * math.prod(eqn.invars[0].aval.shape[d] for d in contracted)
            inner = (getattr(value, "jaxpr", value) for value in eqn.params.values())
            total += sum(count(j) for j in inner if hasattr(j, "eqns"))
        return total

    with portable(True):
        return count(jax.make_jaxpr(f)(*arguments).jaxpr)


def describe(run: Run, *, as_json: bool = False) -> dict[str, Any]:
    """Prints the parameter table, shapes, operations per image and memory; returns the totals, or prints them alone `as_json`."""
    model, shape, batch = run.model, run.info.image_shape, run.config.batch_size
    variables = run.variables
    params = variables["params"]

    def forward(variables: Any, image: jax.Array) -> Any:
        return model.apply(variables, image, train=False)

    image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    _, maps = jax.eval_shape(forward, variables, image)
    macs = multiply_adds(forward, variables, image)
    count = sum(p.size for p in jax.tree.leaves(params))
    itemsize = 2 if run.config.precision == "bfloat16" else 4
    activations = sum(math.prod(m.shape) for m in maps.values()) * itemsize * batch
    examples = sum(run.info.splits.values())
    totals = {
        "parameters": count,
        "multiply_adds_per_image": macs,
        "flops_per_image": 2 * macs,
        "data_bytes": 0 if run.info.streamed else examples * memory.row(shape),
        "state_bytes": count * 4 * (4 if run.config.optimizer.average else 3),
        "activation_bytes": activations,
    }
    if as_json:
        print(json.dumps(totals))
        return totals

    flat: Any = flatten_dict(params)
    rows = [("/".join(path[:-1]), path[-1], _by(p.shape), f"{p.size:,}") for path, p in flat.items()]
    table(f"{run.config.model.name} on {run.info.name} {shape}", ("layer", "parameter", "shape", "numbers"), rows)
    rows = [(name, _by(m.shape[1:])) for name, m in maps.items()]
    table("maps of one image", ("map", "height x width x channels"), rows)
    mib = 2**20
    print(f"parameters: {count:,} ({count * 4 / mib:.2f} MiB)")
    print(f"FLOPs per image: {2 * macs:,} (forward; 2 x {macs:,} multiply-adds; training about three times as many)")
    print(
        f"memory on each device: data {totals['data_bytes'] / mib:.0f} MiB, parameters, momentum, gradient "
        f"{'and average ' * bool(run.config.optimizer.average)}"
        f"{totals['state_bytes'] / mib:.1f} MiB, maps of a batch of {batch} kept for the gradient about "
        f"{activations / mib:.0f} MiB over {run.mesh.size} device(s)"
    )
    return totals


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
