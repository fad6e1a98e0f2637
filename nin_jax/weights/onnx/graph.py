"""The nodes of a graph, and how it stores values: maps of a batch lie channels first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from nin_jax.errors import UserError
from nin_jax.weights.onnx.traced import Value


class Unsupported(Exception):
    """Why a value has no translation."""


def order(shape: Sequence[Any]) -> tuple[int, ...]:
    """JAX's axes in the order in which the graph stores a value: `[B, H, W, C]` of symbolic B channels first, others as they are."""
    return (0, 3, 1, 2) if len(shape) == 4 and not isinstance(shape[0], int) else tuple(range(len(shape)))


def unmoved(shape: Sequence[Any]) -> bool:
    """Whether `order` leaves the numbers of a value in their sequence."""
    return order(shape) == tuple(range(len(shape))) or shape[3] == 1 or tuple(shape[1:3]) == (1, 1)


class Graph:
    """Nodes that are added one after the other; `proto` keeps those that the outputs need.

    Attributes:
      names: the tensor of each value, in `order`; or why there is none.
      whole: values whose tensor has all of their shape; others' broadcast to it, which elementwise operations do by themselves.
    """

    def __init__(self) -> None:
        self.names: dict[Value, str | Unsupported] = {}
        self.whole: set[Value] = set()
        self._nodes: list[NodeProto] = []
        self._tensors: dict[str, TensorProto] = {}
        self._known: dict[Any, str] = {}  # small constants and transposed tensors, which are wanted again and again
        self._taken: dict[str, int] = {}

    def add(self, op: str, inputs: Sequence[str], where: str, **attributes: Any) -> str:
        """The output of a new node, which is named by where it belongs, such as "mlpconv1/conv1"."""
        name = self._unique("/".join(part for part in (where, op) if part))
        self._nodes.append(helper.make_node(op, inputs, [name], name, **attributes))
        return name

    def tensor(self, number: Any, name: str = "") -> str:
        """A constant tensor."""
        number = np.ascontiguousarray(number)
        key = number.dtype, number.shape, number.tobytes() if number.size < 32 else name or id(number)
        if key not in self._known:
            self._known[key] = unique = self._unique(name or "constant")
            self._tensors[unique] = numpy_helper.from_array(number, unique)
        return self._known[key]

    def stored(self, value: Value) -> str:
        """The whole tensor of a value, in `order`. Raises `Unsupported`."""
        if value.number is not None and value.number.shape == value.shape:
            return self.tensor(value.number.transpose(order(value.shape)), value.name)
        name = self.names.get(value, Unsupported("a constant for each image of the batch"))
        if isinstance(name, Unsupported):
            raise Unsupported(*name.args)
        if value not in self.whole:
            raise Unsupported("an operation that is not elementwise on what was broadcast")
        return name

    def operand(self, value: Value, shape: Sequence[Any]) -> str:
        """A tensor that broadcasts to the `shape` of an elementwise result, in its `order`. Raises `Unsupported`."""
        if value.number is not None:
            number = value.number
            return self.tensor(number.transpose(order(shape)) if number.ndim == len(shape) else number, value.name)
        name = self.names[value]
        if isinstance(name, Unsupported):
            raise Unsupported(*name.args)
        return name

    def plain(self, value: Value) -> str:
        """The whole tensor of a value in JAX's order of axes. Raises `Unsupported`."""
        axes = order(value.shape)
        return self.permuted(self.stored(value), [axes.index(axis) for axis in range(len(axes))], value.name)

    def permuted(self, tensor: str, axes: Sequence[int], where: str) -> str:
        """A tensor with its axes in another order."""
        if list(axes) == sorted(axes):
            return tensor
        key = tensor, tuple(axes)
        if key not in self._known:
            self._known[key] = self.add("Transpose", [tensor], where, perm=list(axes))
        return self._known[key]

    def proto(self, inputs: dict[str, Value], outputs: dict[str, Value]) -> GraphProto:
        """The graph with these inputs and outputs, in JAX's order of axes. Raises `UserError` where an operation has no translation."""
        try:
            results = {name: self.plain(value) for name, value in outputs.items()}
        except Unsupported as error:
            raise UserError(f"the network cannot be written as ONNX: {error}") from error
        for name, result in results.items():
            self._nodes.append(helper.make_node("Identity", [result], [name], name))
        needed, kept = set(outputs), []
        for node in reversed(self._nodes):
            if needed.intersection(node.output):
                needed.update(node.input)
                kept.append(node)
        return helper.make_graph(
            kept[::-1],
            "nin_jax",
            [_info(name, value) for name, value in inputs.items()],
            [_info(name, value) for name, value in outputs.items()],
            [tensor for name, tensor in self._tensors.items() if name in needed],
        )

    def _unique(self, name: str) -> str:
        count = self._taken[name] = self._taken.get(name, 0) + 1
        return name if count == 1 else f"{name}_{count}"


def _info(name: str, value: Value) -> Any:
    shape = [axis if isinstance(axis, int) else str(axis) for axis in value.shape]
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), shape)
