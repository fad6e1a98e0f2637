"""Reads the text of a compiled program (HLO): what its operations read and write, and what the compiler thinks they take."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

# What moves no data. The second half of an asynchronous operation is counted with the first.
FREE = {"parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all", "partition-id", "opt-barrier"}
BACKGROUND = {"copy-start", "slice-start"}  # copies beside the operations, between memory and chip
CALLS = {"call", "async-start", "while", "conditional"}
COLLECTIVES = "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute"
ARRAY = re.compile(r"\b([a-z]+)(\d*)\w*\[([\d,]*)\](\{[^}]*\})?")
UNKNOWN = 10**12  # cycles; more than that is the compiler's way of saying that it has no estimate


class Op(NamedTuple):
    """An operation of a computation: its name, the text of its result's type, its kind, operands and attributes."""

    name: str
    result: str
    kind: str
    operands: tuple[str, ...]
    rest: str

    @property
    def free(self) -> bool:
        joined = self.kind == "custom-call" and '"ConcatBitcast"' in self.rest  # parts that lie side by side on a TPU
        return joined or self.kind in FREE or self.kind.endswith("-done")

    def called(self, attribute: str) -> list[str]:
        """The computations that an attribute names."""
        match = re.search(attribute + r"=(?:\{([^}]*)\}|(%?[\w.\-]+))", self.rest)
        return re.findall(r"[\w.\-]+", match[1] or match[2]) if match else []


@dataclass
class Cost:
    """What operations cost, added up.

    Attributes:
      bytes: read from and written to the device's memory by each of them.
      kernels: how many there are.
      cycles: the compiler's estimate.
      unpriced: how many it has no estimate for, by kind and largest result.
    """

    bytes: int = 0
    kernels: int = 0
    cycles: int = 0
    unpriced: Counter[str] = field(default_factory=Counter)

    def add(self, other: Cost, times: int = 1) -> None:
        self.bytes += times * other.bytes
        self.kernels += times * other.kernels
        self.cycles += times * other.cycles
        self.unpriced += other.unpriced


class Program:
    """A compiled program.

    Args:
      text: what `jax.stages.Compiled.as_text` returns.

    Attributes:
      computations: the operations of each, by name.
      entry: the name of the one that is run.
    """

    def __init__(self, text: str):
        self.text = re.sub(r"/\*.*?\*/", "", text)
        self.tiled = ":T(" in text  # as on a TPU, whose memory space 1 is on the chip
        self.computations: dict[str, dict[str, Op]] = {}
        current: dict[str, Op] | None = None
        for line in self.text.splitlines():
            if head := re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line):
                current = self.computations[head[2]] = {}
                self.entry = head[2] if head[1] else getattr(self, "entry", "")
            elif line.startswith("}"):
                current = None
            elif current is not None and (
                op := re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z\d\-]*)\((.*)", line)
            ):
                operands = re.findall(r"%([\w.\-]+)", op[4].split("), ")[0])
                current[op[1]] = Op(op[1], op[2], op[3], tuple(operands), op[4])

    @cached_property
    def loop(self) -> Op | None:
        """The loop over the updates of a dispatch, whose number is an argument; other loops say how often they run."""
        loops = (op for op in self.computations[self.entry].values() if op.kind == "while")
        return next((op for op in loops if "known_trip_count" not in op.rest), None)

    def update(self) -> Cost:
        """What an update costs: what the loop does once, or the whole program where there is none."""
        return self.cost(self.loop.called("body")[0] if self.loop else self.entry)

    def besides(self) -> Cost:
        """What a dispatch costs on top of its updates."""
        return self.cost(self.entry, without=self.loop) if self.loop else Cost()

    def cost(self, computation: str, without: Op | None = None) -> Cost:
        """What the operations of a computation cost, and of those that it calls.

        Of a conditional the dearest branch counts, a loop as often as it says that it runs, or once.
        """
        total, ops = Cost(), self.computations[computation]
        for op in ops.values():
            if op.free or op is without or (self.tiled and op.kind not in CALLS and _elements(op.result) == 1):
                continue  # a TPU's scalars have a processor of their own
            if op.kind == "while":
                count = re.search(r'known_trip_count":\{"n":"(\d+)"', op.rest)
                total.add(self.cost(op.called("body")[0]), int(count[1]) if count else 1)
            elif op.kind == "conditional":
                kinds = "branch_computations", "true_computation", "false_computation"
                branches = [branch for kind in kinds for branch in op.called(kind)]
                total.add(max(map(self.cost, branches), key=lambda cost: (cost.cycles, cost.bytes)))
            elif op.kind in CALLS:
                total.add(self.cost((op.called("calls") or op.called("to_apply"))[0]))
            else:
                read = sum(self.read(ops, op, i) for i in range(len(op.operands)))
                cycles = re.search(r'estimated_cycles":"(\d+)"', op.rest)
                priced = int(cycles[1]) if cycles and int(cycles[1]) < UNKNOWN else None
                what = "copy in the background" if op.kind in BACKGROUND else f"{op.kind} {_largest(op.result)}"
                unpriced = Counter({what: 1} if priced is None else {})
                kernels = int(op.kind not in BACKGROUND)
                total.add(Cost(read + self.written(ops, op), kernels, priced or 0, unpriced))
        return total

    def read(self, ops: dict[str, Op], op: Op, place: int) -> int:
        """Bytes that an operation reads of an operand: of one that is gathered from or sliced, those that it takes."""
        operand = ops.get(op.operands[place])
        whole = self.size(operand.result) if operand else 0
        if op.kind in ("gather", "dynamic-slice", "slice", "slice-start") and place == 0:
            return min(whole, _all_bytes(_result(ops, op)))
        if op.kind in ("dynamic-update-slice", "scatter") and place == 0:
            return 0  # it is written in place
        if op.kind == "fusion":
            inner = self.computations[op.called("calls")[0]]
            parameter = next(
                (o for o in inner.values() if o.kind == "parameter" and o.rest.startswith(f"{place})")), None
            )
            return min(whole, self._used(inner, parameter.name)) if parameter else whole
        return whole

    def _used(self, ops: dict[str, Op], name: str) -> int:
        """Bytes that a fused computation reads of one of its values."""
        total = 0
        for op in ops.values():
            for place, operand in enumerate(op.operands):
                if operand == name:
                    total += (
                        self._used(ops, op.name) if op.kind in ("bitcast", "reshape") else self.read(ops, op, place)
                    )
        return total

    def written(self, ops: dict[str, Op], op: Op) -> int:
        """Bytes that an operation writes: of an array that is updated in place, those of the update."""
        if op.kind == "dynamic-update-slice":
            update = ops.get(op.operands[1])
            return self.size(update.result) if update else 0
        if op.kind == "fusion":
            inner = self.computations[op.called("calls")[0]]
            root = list(inner.values())[-1]
            roots = [inner[name] for name in root.operands] if root.kind == "tuple" else [root]
            if any(r.kind == "dynamic-update-slice" for r in roots):
                return sum(self.written(inner, r) for r in roots)
        return self.size(_result(ops, op))

    def size(self, result: str) -> int:
        """Bytes in the device's memory of an array, or of a tuple's arrays, by the text of its type."""
        return sum(_bytes(*one) for one in ARRAY.findall(result) if not (self.tiled and "S(1)" in one[3]))

    def collectives(self) -> list[tuple[str, int]]:
        """The kind and the bytes of each collective, by size: what a device gets from it."""
        found = []
        for ops in self.computations.values():
            for op in ops.values():
                if (kind := op.kind.removesuffix("-start")) in COLLECTIVES:
                    found.append((kind, _all_bytes(_result(ops, op))))
        return sorted(found, key=lambda one: -one[1])

    def copies(self, elements: int) -> list[str]:
        """What makes an array of at least so many bytes of uint8, as a copy of the data set is."""
        fused = {
            name
            for ops in self.computations.values()
            for op in ops.values()
            if op.kind == "fusion"
            for name in op.called("calls")
        }
        return [
            f"{op.kind} {op.result}"
            for name, ops in self.computations.items()
            if name not in fused
            for op in ops.values()
            if not op.free and op.kind not in CALLS
            for kind, bits, dims, _ in ARRAY.findall(op.result)
            if kind + bits == "u8" and _count(dims) >= elements
        ]

    def donated(self) -> int:
        """How many arguments' memory the results take."""
        return len(re.findall(r"(?:may|must)-alias\)", self.text.split("\n", 1)[0]))

    def float64(self) -> int:
        """How many arrays are of float64."""
        return len(re.findall(r"\bf64\[", self.text))


def _result(ops: dict[str, Op], op: Op) -> str:
    """The type of what an operation makes; that of the first half of an asynchronous one has its operands too."""
    if not op.kind.endswith("-start"):
        return op.result
    return next((o.result for o in ops.values() if o.kind.endswith("-done") and op.name in o.operands), op.result)


def _count(dims: str) -> int:
    """The elements of an array of dimensions such as "3,4"."""
    return math.prod(int(d) for d in dims.split(",") if d)


def _bytes(kind: str, bits: str, dims: str, _: str) -> int:
    """The bytes of an array; a token, which has no bits, has none."""
    return _count(dims) * (8 if kind == "pred" else int(bits or 0)) // 8


def _all_bytes(result: str) -> int:
    """The bytes of all arrays of a type, wherever they lie."""
    return sum(_bytes(*one) for one in ARRAY.findall(result))


def _elements(result: str) -> int:
    """The elements of the largest array of a type."""
    return max((_count(dims) for _, _, dims, _ in ARRAY.findall(result)), default=1)


def _largest(result: str) -> str:
    """The largest array of a type, without its layout."""
    kind, bits, dims, _ = max(ARRAY.findall(result), key=lambda one: _count(one[2]), default=("token", "", "", ""))
    return f"{kind}{bits}[{dims}]"
