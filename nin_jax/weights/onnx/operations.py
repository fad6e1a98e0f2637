"""What each of JAX's operations is in ONNX: `TRANSLATIONS[op](graph, value)` adds its nodes and returns the tensor, in `order`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from onnx import helper

from nin_jax.weights.onnx import patterns
from nin_jax.weights.onnx.graph import Graph, Unsupported, order, unmoved
from nin_jax.weights.onnx.traced import Traced, Value

Translation = Callable[[Graph, Value], str]

# Operations on single elements, of the same numbers of inputs.
SAME = {
    **{"add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "pow": "Pow", "max": "Max", "min": "Min", "neg": "Neg"},
    **{"exp": "Exp", "log": "Log", "sqrt": "Sqrt", "abs": "Abs", "tanh": "Tanh", "logistic": "Sigmoid", "erf": "Erf"},
    **{"eq": "Equal", "gt": "Greater", "ge": "GreaterOrEqual", "lt": "Less", "le": "LessOrEqual"},
    **{"and": "And", "or": "Or", "not": "Not"},
}
REDUCTIONS = {"reduce_sum": "ReduceSum", "reduce_max": "ReduceMax"}


def translate(traced: Traced, input: str) -> Graph:
    """The graph of a traced function, whose input has this name."""
    graph = Graph()
    graph.whole.add(traced.input)
    graph.names[traced.input] = graph.permuted(input, order(traced.input.shape), "")
    for value in traced.values:
        try:
            if value.number is None:
                graph.names[value] = _translated(graph, value)
        except Unsupported as error:
            graph.names[value] = error
        if value.op == "broadcast_in_dim":  # whole where it only adds axes of 1
            whole = value.inputs[0] in graph.whole and _placed(value) == list(value.shape)
        else:
            whole = value.op not in ELEMENTWISE or any(
                i in graph.whole and i.shape == value.shape for i in value.inputs
            )
        if whole:
            graph.whole.add(value)
    return graph


def _translated(graph: Graph, value: Value) -> str:
    for pattern in patterns.PATTERNS.get(value.op, ()):
        if (name := pattern(graph, value)) is not None:
            return name
    if value.op in SAME:
        return elementwise(graph, SAME[value.op], value)
    if value.op in REDUCTIONS:
        return patterns.reduced(graph, REDUCTIONS[value.op], value)
    if value.op in OTHERS:
        return OTHERS[value.op](graph, value)
    raise Unsupported(f"operation {value.op!r} of {value.name or 'the network'} has no translation")


def elementwise(graph: Graph, op: str, value: Value, *more: str, **attributes: Any) -> str:
    return graph.add(op, [*(graph.operand(i, value.shape) for i in value.inputs), *more], value.name, **attributes)


def not_equal(graph: Graph, value: Value) -> str:
    return graph.add("Not", [elementwise(graph, "Equal", value)], value.name)


def rsqrt(graph: Graph, value: Value) -> str:
    return graph.add("Reciprocal", [elementwise(graph, "Sqrt", value)], value.name)


def square(graph: Graph, value: Value) -> str:
    return elementwise(graph, "Mul", value, graph.operand(value.inputs[0], value.shape))


def integer_pow(graph: Graph, value: Value) -> str:
    return elementwise(graph, "Pow", value, graph.tensor(np.array(value.params["y"], value.dtype)))


def select(graph: Graph, value: Value) -> str:
    which, *cases = value.inputs
    if len(cases) != 2 or which.dtype != np.bool_:
        raise Unsupported(f"operation 'select_n' of {len(cases)} cases has no translation")
    return graph.add("Where", [graph.operand(i, value.shape) for i in (which, cases[1], cases[0])], value.name)


def convert(graph: Graph, value: Value) -> str:
    if value.inputs[0].dtype == value.dtype:
        return graph.operand(value.inputs[0], value.shape)
    return elementwise(graph, "Cast", value, to=helper.np_dtype_to_tensor_dtype(value.dtype))


def convolution(graph: Graph, value: Value) -> str:
    name = patterns.linear(graph, value)
    if name is None:
        raise Unsupported("convolutions other than of [B, H, W, C] by a constant kernel have no translation")
    return name


def product(graph: Graph, value: Value) -> str:
    """A product by a constant matrix, or of as many matrices as the axes that both have in common."""
    if (name := patterns.linear(graph, value)) is not None:
        return name
    (contracted, batched), sides = value.params["dimension_numbers"], []
    for operand, ours, shared, last in zip(value.inputs, contracted, batched, (True, False), strict=True):
        free = [axis for axis in range(len(operand.shape)) if axis not in (*ours, *shared)]
        if len(free) != 1 or len(ours) != 1:
            raise Unsupported("products over several axes have no translation")
        axes = [*shared, *free, *ours] if last else [*shared, *ours, *free]
        if operand.number is not None:
            sides.append(graph.tensor(operand.number.transpose(axes), operand.name))
        else:
            sides.append(graph.permuted(graph.plain(operand), axes, value.name))
    return graph.permuted(graph.add("MatMul", sides, value.name), order(value.shape), value.name)


def reshape(graph: Graph, value: Value) -> str:
    return _reshaped(graph, value, value.shape)


def broadcast(graph: Graph, value: Value) -> str:
    """The value with axes of 1, which broadcasts where it is used."""
    return _reshaped(graph, value, _placed(value))


def _placed(value: Value) -> list[Any]:
    """The shape of what is broadcast, with axes of 1 where it has none."""
    axes = dict(zip(value.params["broadcast_dimensions"], value.inputs[0].shape, strict=True))
    return [axes.get(axis, 1) for axis in range(len(value.shape))]


def _reshaped(graph: Graph, value: Value, shape: Sequence[Any]) -> str:
    source = value.inputs[0]
    axes = order(value.shape)
    stored = [shape[axis] for axis in axes] if unmoved(shape) else shape
    if sum(not isinstance(n, int) for n in stored) > 1:
        raise Unsupported("reshaping the batch has no translation")
    target = graph.tensor(np.array([n if isinstance(n, int) else -1 for n in stored], np.int64))
    tensor = graph.stored(source) if unmoved(source.shape) else graph.plain(source)
    name = graph.add("Reshape", [tensor, target], value.name)
    return name if unmoved(shape) else graph.permuted(name, axes, value.name)


def transpose(graph: Graph, value: Value) -> str:
    before, after = order(value.inputs[0].shape), order(value.shape)
    axes = [before.index(value.params["permutation"][axis]) for axis in after]
    return graph.permuted(graph.stored(value.inputs[0]), axes, value.name)


def pad(graph: Graph, value: Value) -> str:
    config = value.params["padding_config"]
    if any(low < 0 or high < 0 or interior for low, high, interior in config):
        raise Unsupported("padding between elements, or by less than 0, has no translation")
    axes = [axis for axis, (low, high, _) in enumerate(config) if low or high]
    pads = [int(config[axis][side]) for side in (0, 1) for axis in axes]
    inputs = graph.stored(value.inputs[0]), _ints(graph, pads), graph.operand(value.inputs[1], ())
    return graph.add("Pad", [*inputs, _axes(graph, value, axes)], value.name)


def slices(graph: Graph, value: Value) -> str:
    shape, starts, limits = value.inputs[0].shape, value.params["start_indices"], value.params["limit_indices"]
    strides = value.params["strides"] or (1,) * len(shape)
    axes = [axis for axis, n in enumerate(shape) if (starts[axis], limits[axis], strides[axis]) != (0, n, 1)]
    bounds = [[numbers[axis] for axis in axes] for numbers in (starts, limits, strides)]
    if not all(isinstance(n, int) for numbers in bounds for n in numbers):
        raise Unsupported("a slice of the batch has no translation")
    start, limit, stride = (_ints(graph, numbers) for numbers in bounds)
    inputs = [graph.stored(value.inputs[0]), start, limit, _axes(graph, value, axes), stride]
    return graph.add("Slice", inputs, value.name)


def reverse(graph: Graph, value: Value) -> str:
    axes = value.params["dimensions"]
    start, limit, stride = (_ints(graph, [n] * len(axes)) for n in (-1, np.iinfo(np.int64).min, -1))
    inputs = [graph.stored(value.inputs[0]), start, limit, _axes(graph, value, axes), stride]
    return graph.add("Slice", inputs, value.name)


def concatenate(graph: Graph, value: Value) -> str:
    axis = order(value.shape).index(value.params["dimension"])
    return graph.add("Concat", [graph.stored(i) for i in value.inputs], value.name, axis=axis)


def window_sum(graph: Graph, value: Value) -> str:
    """A sum over windows of rows and columns: an average that counts the padding, times the size of a window."""
    p, x = value.params, value.inputs[0]
    window, strides, edges = p["window_dimensions"], p["window_strides"], p["padding"]
    outside = [window[axis] != 1 or strides[axis] != 1 or tuple(edges[axis]) != (0, 0) for axis in (0, 3)]
    if len(window) != 4 or any(outside) or {*p["base_dilation"], *p["window_dilation"]} != {1}:
        raise Unsupported("sums over windows other than of rows and columns have no translation")
    (top, bottom), (left, right) = edges[1:3]
    form = {"kernel_shape": list(window[1:3]), "strides": list(strides[1:3]), "pads": [top, left, bottom, right]}
    average = graph.add("AveragePool", [graph.stored(x)], value.name, **form, count_include_pad=1)
    return graph.add("Mul", [average, graph.tensor(np.array(window[1] * window[2], value.dtype))], value.name)


def _ints(graph: Graph, numbers: Sequence[int]) -> str:
    return graph.tensor(np.array(numbers, np.int64))


def _axes(graph: Graph, value: Value, axes: Sequence[int]) -> str:
    return _ints(graph, [order(value.shape).index(axis) for axis in axes])


ELEMENTWISE_OTHERS: dict[str, Translation] = {
    **{"ne": not_equal, "rsqrt": rsqrt, "square": square, "integer_pow": integer_pow},
    **{"select_n": select, "convert_element_type": convert, "copy": convert},
}
ELEMENTWISE = {*SAME, *ELEMENTWISE_OTHERS}
OTHERS: dict[str, Translation] = ELEMENTWISE_OTHERS | {
    **{"conv_general_dilated": convolution, "dot_general": product, "concatenate": concatenate, "transpose": transpose},
    "reduce_window_sum": window_sum,
    **{"reshape": reshape, "squeeze": reshape, "expand_dims": reshape, "broadcast_in_dim": broadcast},
    **{"pad": pad, "slice": slices, "rev": reverse},
}
