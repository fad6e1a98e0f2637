"""What ONNX has as one node and JAX as several operations. A pattern returns its tensor, or None where it does not fit."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from nin_jax.weights.onnx.graph import Graph, order
from nin_jax.weights.onnx.traced import Value

USUAL = (0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2)  # NHWC images, HWIO kernels


def linear(graph: Graph, value: Value, bias: Value | None = None) -> str | None:
    """Conv for a convolution, and for the product of the channels of maps by a matrix; Gemm for that of rows."""
    x, kernel = value.inputs
    if kernel.number is None or kernel.number.shape != kernel.shape:
        return None
    op, params, form = "Conv", value.params, {}
    if value.op == "conv_general_dilated":
        spec = params["dimension_numbers"]
        if (spec.lhs_spec, spec.rhs_spec, spec.out_spec) != USUAL or {*params["lhs_dilation"]} != {1}:
            return None
        weights = kernel.number.transpose(3, 2, 0, 1)
        pads = [int(pad[side]) for side in (0, 1) for pad in params["padding"]]
        form = {"strides": params["window_strides"], "dilations": params["rhs_dilation"], "pads": pads}
        form |= {"kernel_shape": weights.shape[2:], "group": params["feature_group_count"]}
    elif params["dimension_numbers"] != (((len(x.shape) - 1,), (0,)), ((), ())) or len(kernel.shape) != 2:
        return None
    elif len(x.shape) == 2:
        op, weights = "Gemm", kernel.number
    elif order(x.shape) == (0, 3, 1, 2):
        weights = kernel.number.T[:, :, None, None]
        form = {"kernel_shape": (1, 1)}
    else:
        return None
    inputs = [graph.stored(x), graph.tensor(weights, kernel.name)]
    if bias is not None and bias.number is not None:
        inputs.append(graph.tensor(bias.number.ravel(), bias.name))
    return graph.add(op, inputs, value.name, **form)


def with_bias(graph: Graph, value: Value) -> str | None:
    """The bias, added to the result of a layer, as the third input of Conv or Gemm."""
    for x, bias in (value.inputs, value.inputs[::-1]):
        number = bias.number
        if number is None or number.ndim < 2 or not number.size == number.shape[-1] == x.shape[-1]:
            continue
        if x.op in ("conv_general_dilated", "dot_general"):
            return linear(graph, x, bias)
    return None


def relu(graph: Graph, value: Value) -> str | None:
    """max(x, 0)."""
    x = with_scalar(value, "max")
    return graph.add("Relu", [graph.operand(x[0], value.shape)], value.name) if x and x[1] == 0 else None


def maxout(graph: Graph, value: Value) -> str | None:
    """The larger of two, or a NaN: `jnp.where((b > a) | jnp.isnan(b), b, a)`."""
    which, a, b = value.inputs
    if which.op != "or" or [i.op for i in which.inputs] != ["gt", "ne"]:
        return None
    larger, nan = which.inputs
    if [*larger.inputs, *nan.inputs] != [b, a, b, b]:
        return None
    return graph.add("Max", [graph.operand(i, value.shape) for i in (a, b)], value.name)


def mean(graph: Graph, value: Value) -> str | None:
    """A sum over some axes, divided by how many numbers it is of."""
    found = with_scalar(value, "div")
    if found is None or found[0].op != "reduce_sum":
        return None
    total, count = found
    if count != math.prod(n for axis, n in enumerate(total.inputs[0].shape) if axis in total.params["axes"]):
        return None
    return reduced(graph, "ReduceMean", total)


def reduced(graph: Graph, op: str, value: Value) -> str:
    """A reduction over the axes that `value` is reduced over."""
    (x,), axes = value.inputs, value.params["axes"]
    stored = order(x.shape)
    left = [axis for axis in stored if axis not in axes]
    if left == sorted(left):
        tensor, axes = graph.stored(x), [stored.index(axis) for axis in axes]
    else:
        tensor = graph.plain(x)
    return graph.add(op, [tensor, graph.tensor(np.array(axes, np.int64))], value.name, keepdims=0)


def response_normalisation(graph: Graph, value: Value) -> str | None:
    """x * (bias + alpha / size * sum of x^2 over neighbouring channels)^-beta."""
    x, power = value.inputs
    if (raised := with_scalar(power, "pow")) is None or (added := with_scalar(raised[0], "add")) is None:
        return None
    if (scaled := with_scalar(added[0], "mul")) is None or scaled[0].op != "reduce_window_sum":
        return None
    squares, params = scaled[0].inputs[0], scaled[0].params
    size = params["window_dimensions"][-1]
    edges = ((0, 0),) * 3 + ((size // 2, size // 2),)
    plain = params["window_dimensions"] == (1, 1, 1, size) and params["window_strides"] == (1, 1, 1, 1)
    if (
        not plain
        or tuple(map(tuple, params["padding"])) != edges
        or squares.op != "square"
        or squares.inputs[0] is not x
    ):
        return None
    form = {"size": size, "alpha": scaled[1] * size, "beta": -raised[1], "bias": added[1]}
    return graph.add("LRN", [graph.stored(x)], value.name, **form)


class Window(NamedTuple):
    """The slices of a pool: of what, the side and stride of a window, and the rows and columns added (top, left, bottom, right)."""

    source: Value
    size: int
    stride: int
    pads: list[int]

    @property
    def form(self) -> dict[str, Any]:
        return {"kernel_shape": [self.size] * 2, "strides": [self.stride] * 2, "pads": self.pads}

    def inside(self) -> np.ndarray:
        """How many elements of each window lie in the image, `[H', W']`."""
        sides = []
        for n, low, high in zip(self.source.shape[1:3], self.pads[:2], self.pads[2:], strict=True):
            first = np.arange(0, n + low + high - self.size + 1, self.stride) - low
            sides.append(np.minimum(first + self.size, n) - np.maximum(first, 0))
        return np.outer(*sides)


def window(value: Value, fill: float) -> Window | None:
    """The pool that a maximum or sum of shifted slices is; padding by `fill` is the pool's own."""
    parts, rest = [], value
    while rest.op == value.op:
        rest, last = rest.inputs
        parts.append(last)
    parts.append(rest)
    size = math.isqrt(len(parts))
    if size**2 != len(parts) or any(part.op != "slice" or part.inputs[0] is not rest.inputs[0] for part in parts):
        return None
    source, rows = rest.inputs[0], range(size)
    _, stride, other, _ = rest.params["strides"] or (1, 1, 1, 1)
    if order(source.shape) != (0, 3, 1, 2) or stride != other:
        return None
    counts = [(n - size) // stride + 1 for n in source.shape[1:3]]
    corners = [part.params["start_indices"] for part in reversed(parts)]
    alike = all(part.params["strides"] == rest.params["strides"] for part in parts)
    if not alike or value.shape != (source.shape[0], *counts, source.shape[3]):
        return None
    if corners != [(0, i, j, 0) for i, j in itertools.product(rows, rows)]:
        return None
    pads = [0, 0, 0, 0]
    while source.op == "pad" and _is(source.inputs[1], fill):
        images, (top, bottom, a), (left, right, b), channels = source.params["padding_config"]
        if images != (0, 0, 0) or channels != (0, 0, 0) or a or b or min(top, bottom, left, right) < 0:
            break
        pads = [int(sum(both)) for both in zip(pads, (top, left, bottom, right), strict=True)]
        source = source.inputs[0]
    return Window(source, size, stride, pads) if max(pads) < size else None


def max_pool(graph: Graph, value: Value) -> str | None:
    pool = window(value, -math.inf)
    return None if pool is None else graph.add("MaxPool", [graph.stored(pool.source)], value.name, **pool.form)


def sum_pool(graph: Graph, value: Value) -> str | None:
    pool = window(value, 0)
    if pool is None:
        return None
    mean = graph.add("AveragePool", [graph.stored(pool.source)], value.name, count_include_pad=1, **pool.form)
    return graph.add("Mul", [mean, graph.tensor(np.array(pool.size**2, value.dtype))], value.name)


def avg_pool(graph: Graph, value: Value) -> str | None:
    """The sum of a window, divided by its size, or by how many of its elements lie in the image."""
    total, count = value.inputs
    pool = window(total, 0) if total.op == "add" else None
    if pool is None or count.number is None:
        return None
    whole = np.all(count.number == pool.size**2)
    if not whole and not np.array_equal(count.number.reshape(count.number.shape[1:3]), pool.inside()):
        return None
    form = pool.form | {"count_include_pad": int(whole)}
    return graph.add("AveragePool", [graph.stored(pool.source)], value.name, **form)


def with_scalar(value: Value, op: str) -> tuple[Value, float] | None:
    """The operand and the scalar of such an operation; the scalar may only come first where the order does not matter."""
    if value.op == op:
        pairs = [tuple(value.inputs), tuple(value.inputs[::-1])]
        for x, c in pairs if op in ("add", "mul", "max") else pairs[:1]:
            if c.number is not None and c.number.size == 1:
                return x, float(c.number.item())
    return None


def _is(value: Value, number: float) -> bool:
    return value.number is not None and value.number.size == 1 and value.number.item() == number


PATTERNS: dict[str, tuple[Callable[[Graph, Value], str | None], ...]] = {
    "add": (with_bias, sum_pool),
    "max": (relu, max_pool),
    "mul": (response_normalisation,),
    "div": (mean, avg_pool),
    "select_n": (maxout,),
}
