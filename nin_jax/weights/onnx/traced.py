"""A traced function as a list of values: calls are inlined, and what no input decides is computed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import Literal

# What calls a function that is part of the program, and the parameter that holds it.
CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr"}


@dataclasses.dataclass(eq=False)
class Value:
    """What an operation makes of other values, or an input, or a constant.

    Attributes:
      op: the primitive's name, "input" or "constant".
      shape: an axis of symbolic size is not an int.
      dtype: NumPy's.
      inputs, params: those of the operation.
      name: of a parameter, or of the module that the operation belongs to, such as "mlpconv1/conv1".
      number: a constant's; it broadcasts to the shape.
    """

    op: str
    shape: tuple[Any, ...]
    dtype: np.dtype
    inputs: Sequence[Value] = ()
    params: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    name: str = ""
    number: np.ndarray | None = None


class Traced(NamedTuple):
    """The input, the outputs by name, and every value in the order of computing, of a function of one array."""

    input: Value
    outputs: dict[str, Value]
    values: list[Value]


def trace(f: Callable[[Any, jax.Array], dict[str, jax.Array]], numbers: Any, image: jax.ShapeDtypeStruct) -> Traced:
    """`f(numbers, image)`, of which the numbers are constants, named by their paths."""
    traced = jax.jit(f).trace(numbers, image)
    leaves, _ = jax.tree_util.tree_flatten_with_path(numbers)
    paths = [jax.tree_util.keystr(path, simple=True, separator="/").removeprefix("params/") for path, _ in leaves]
    named = [constant(number, path) for path, (_, number) in zip(paths, leaves, strict=True)]
    entry = Value("input", image.shape, np.dtype(image.dtype))
    values: list[Value] = []
    outputs = _read(traced.jaxpr.jaxpr, traced.jaxpr.consts, [*named, entry], "", values)
    return Traced(
        entry, dict(zip(sorted(traced.out_info), outputs, strict=True)), values
    )  # JAX sorts the keys of a dict


def constant(number: Any, name: str = "", shape: tuple[Any, ...] | None = None) -> Value:
    """A constant of a `shape`; None: its own."""
    number = np.asarray(number)
    return Value("constant", number.shape if shape is None else shape, number.dtype, name=name, number=number)


def _read(jaxpr: Any, consts: Sequence[Any], inputs: Sequence[Value], scope: str, values: list[Value]) -> list[Value]:
    """The outputs of a jaxpr; what is computed on the way is appended to `values`."""
    known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*map(constant, consts), *inputs], strict=True))

    def value(v: Any) -> Value:
        return known[v] if not isinstance(v, Literal) else constant(np.asarray(v.val, getattr(v.aval, "dtype", None)))

    for eqn in jaxpr.eqns:
        op, arguments = eqn.primitive.name, [value(v) for v in eqn.invars]
        parts = f"{scope}/{eqn.source_info.name_stack}".split("/")
        name = "/".join(part for part in parts if part and "." not in part)  # without methods' names
        if op in CALLS:
            inner = eqn.params[CALLS[op]]
            outputs = _read(inner.jaxpr, inner.consts, arguments, name, values)
        else:
            outputs = (
                _split(eqn, arguments[0], name)
                if op == "split"
                else [_made(eqn, arguments, v, name) for v in eqn.outvars]
            )
            values += outputs
        known.update(zip(eqn.outvars, outputs, strict=True))
    return [value(v) for v in jaxpr.outvars]


def _made(eqn: Any, inputs: Sequence[Value], out: Any, name: str) -> Value:
    """What an operation makes; a constant if its inputs are constants."""
    op, params, shape = eqn.primitive.name, eqn.params, tuple(out.aval.shape)
    made = Value(op, shape, np.dtype(out.aval.dtype), inputs, params, name)
    numbers = [i.number for i in inputs if i.number is not None]
    if len(numbers) < len(inputs) or not inputs:
        return made
    of_parameter = next((i.name for i in inputs if i.name), "")
    if op == "broadcast_in_dim":  # it broadcasts where it is used
        axes = dict(zip(params["broadcast_dimensions"], numbers[0].shape, strict=True))
        return constant(numbers[0].reshape([axes.get(axis, 1) for axis in range(len(shape))]), of_parameter, shape)
    if not all(isinstance(n, int) for i in (made, *inputs) for n in i.shape):
        return made
    numbers = [np.broadcast_to(number, i.shape) for number, i in zip(numbers, inputs, strict=True)]
    if op in ("reshape", "squeeze"):  # without compiling anything
        return constant(numbers[0].reshape(shape), of_parameter)
    return constant(eqn.primitive.bind(*numbers, **params), of_parameter)


def _split(eqn: Any, whole: Value, name: str) -> list[Value]:
    """The parts of a value, each as a slice."""
    axis, parts, end = eqn.params["axis"], [], 0
    for size, out in zip(eqn.params["sizes"], eqn.outvars, strict=True):
        start, end = end, end + int(size)
        limits, starts = list(whole.shape), [0] * len(whole.shape)
        starts[axis], limits[axis] = start, end
        params = {"start_indices": tuple(starts), "limit_indices": tuple(limits), "strides": None}
        parts.append(Value("slice", tuple(out.aval.shape), whole.dtype, [whole], params, name))
    return parts
