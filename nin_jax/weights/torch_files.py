"""Tensors in the files of `torch.save` and in .safetensors files, read without PyTorch and without executing anything.

`torch.save` writes a pickle, which describes nested dicts of tensors, and the tensors' numbers beside it: as entries of a
zip archive (since PyTorch 1.6), or behind the pickle in one stream. A pickle is a program that may call any function. The
reader here follows its instructions to build containers, numbers and texts, and notes every other call without making it.
"""

from __future__ import annotations

import io
import math
import pickletools
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file

from nin_jax.errors import UserError

MOST_OF_A_PICKLE = 2**22  # bytes; that of a network of a thousand layers has a tenth of it
MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a stream
SAVE_WEIGHTS = "save its weights alone, torch.save(model.state_dict(), 'weights.pth'), and import that file"

STORAGES = {
    **{"DoubleStorage": "<f8", "FloatStorage": "<f4", "HalfStorage": "<f2", "BFloat16Storage": jnp.bfloat16},
    **{"LongStorage": "<i8", "IntStorage": "<i4", "ShortStorage": "<i2", "CharStorage": "i1", "ByteStorage": "u1"},
    "BoolStorage": "?",
}


class Call(NamedTuple):
    """A class or function that a pickle names, or what calling it would give."""

    name: str  # such as "torch.nn.modules.conv.Conv2d"


class Storage(NamedTuple):
    """Numbers that tensors share."""

    dtype: np.dtype
    key: str
    count: int


class Tensor(NamedTuple):
    """A tensor that has not been read yet.

    Attributes:
      dtype, shape: its own.
      read: returns its numbers, or raises `UserError`.
    """

    dtype: np.dtype
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


def read(file: Path) -> tuple[Any, bool]:
    """The content of a file, and whether its tensors are in the order in which they were saved.

    It is nested dicts and lists, with `Tensor` for a tensor and `Call` for an object of any class of its own. Raises
    `UserError` for a file that holds something else, and any exception for a damaged one.
    """
    with open(file, "rb") as f:
        start = f.read(9)
    if start[8:] == b"{" or file.suffix == ".safetensors":
        return {name: Tensor(a.dtype, a.shape, lambda a=a: a) for name, a in load_file(file).items()}, False
    return (_archive if zipfile.is_zipfile(file) else _stream)(file), True


def metadata(file: Path) -> dict[str, str]:
    """The metadata of a .safetensors file."""
    with safe_open(file, "np") as opened:
        return opened.metadata() or {}


def _archive(file: Path) -> Any:
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        inner = [name.partition("/")[2] for name in names]
        if "constants.pkl" in inner or any(name.startswith("code/") for name in inner):
            raise UserError(
                "it is a TorchScript program; save its weights alone, "
                "torch.save(torch.jit.load(FILE).state_dict(), 'weights.pth'), and import that file"
            )
        if "data.pkl" not in inner:
            raise ValueError("a zip archive without data.pkl")
        folder = names[inner.index("data.pkl")].removesuffix("data.pkl")
        if "byteorder" in inner and _entry(archive, f"{folder}byteorder", 6) != b"little":
            raise UserError("it was saved on a big-endian machine; save it again on a little-endian one")
        pickled = io.BytesIO(_entry(archive, f"{folder}data.pkl", MOST_OF_A_PICKLE))

    def numbers(storage: Storage) -> np.ndarray:
        with zipfile.ZipFile(file) as archive:
            size = storage.count * storage.dtype.itemsize
            return np.frombuffer(_entry(archive, f"{folder}data/{storage.key}", size), storage.dtype)

    return Pickle(pickled, numbers).value


def _entry(archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    """The bytes of an entry, which must not unpack to more than it takes in the file."""
    info = archive.getinfo(name)
    if info.file_size > most or info.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"entry {name} has {info.file_size} bytes, more than {most}, or is compressed")
    return archive.read(info)


def _stream(file: Path) -> Any:
    places: dict[str, int] = {}

    def numbers(storage: Storage) -> np.ndarray:
        with open(file, "rb") as f:
            f.seek(places[storage.key])
            return np.fromfile(f, storage.dtype, min(storage.count, int.from_bytes(f.read(8), "little")))

    with open(file, "rb") as f:
        pickled = io.BytesIO(f.read(MOST_OF_A_PICKLE))
    if Pickle(pickled, numbers).value != MAGIC:
        raise UserError("it is a pickle that torch.save did not write; save the weights with torch.save or safetensors")
    Pickle(pickled, numbers)  # the version
    if not Pickle(pickled, numbers).value["little_endian"]:
        raise UserError("it was saved on a big-endian machine; save it again on a little-endian one")
    root = Pickle(pickled, numbers)
    keys = Pickle(pickled, numbers).value
    place = pickled.tell()
    for storage in (root.storages[key] for key in keys):
        places[storage.key] = place
        place += 8 + storage.count * storage.dtype.itemsize  # its length, and its numbers
    return root.value


class Pickle:
    """The next pickle of a stream, followed without calling anything.

    Attributes:
      value: what it describes.
      storages: those of its tensors, by key.
    """

    def __init__(self, stream: io.BytesIO, numbers: Callable[[Storage], np.ndarray]):
        self.numbers, self.storages = numbers, {}
        self.copies = MOST_OF_A_PICKLE  # characters and items that may still be copied
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        for opcode, argument, _ in pickletools.genops(stream):
            if opcode.name == "STOP":
                break
            self._step(opcode.name, argument)
        self.value = self.stack.pop()

    def _step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in CONSTANTS:
            stack.append(CONSTANTS[name]())
        elif name == "MARK":
            self.marks.append(len(stack))
        elif name in ("TUPLE", "LIST", "DICT", "FROZENSET"):
            items = self._popped()
            stack.append(dict(_pairs(items)) if name == "DICT" else list(items) if name == "LIST" else tuple(items))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            stack[-count:] = [tuple(stack[-count:])]
        elif name in ("APPEND", "APPENDS", "ADDITEMS"):
            items = [stack.pop()] if name == "APPEND" else self._popped()
            if isinstance(stack[-1], list):
                stack[-1].extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = [stack.pop(-2), stack.pop()] if name == "SETITEM" else self._popped()
            if isinstance(stack[-1], dict):
                stack[-1].update(_pairs(items))
        elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self.memo[len(self.memo) if name == "MEMOIZE" else argument] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name in OBJECTS:
            self._object(name, argument)
        elif name in ("POP", "POP_MARK"):
            stack.pop() if name == "POP" else self._popped()
        elif name == "DUP":
            stack.append(stack[-1])
        elif name not in ("PROTO", "FRAME"):  # a number, a text or bytes
            if argument is None:
                raise ValueError(f"instruction {name}")
            stack.append(argument)

    def _object(self, name: str, argument: Any) -> None:
        """Follows an instruction that would find or call something."""
        stack = self.stack
        if name == "GLOBAL":
            stack.append(Call(argument.replace(" ", ".")))
        elif name == "STACK_GLOBAL":
            self._count(sum(map(len, stack[-2:])))
            stack[-2:] = [Call(".".join(stack[-2:]))]
        elif name in ("REDUCE", "NEWOBJ"):
            called, arguments = stack[-2:]
            stack[-2:] = [self._called(called, arguments)]
        elif name == "NEWOBJ_EX":
            del stack[-2:]
        elif name == "BUILD":
            stack.pop()  # the attributes of an object
        elif name == "BINPERSID":
            stack.append(self._persistent(*stack.pop()))
        else:  # protocols 0 and 1, and the registry of extensions: torch.save uses none of them
            raise ValueError(f"instruction {name}")

    def _count(self, copied: int) -> None:
        """Stops a short pickle that copies a long text or dict again and again."""
        self.copies -= copied
        if self.copies < 0:
            raise ValueError(f"its pickle copies more than {MOST_OF_A_PICKLE} characters or items")

    def _popped(self) -> list[Any]:
        """What was pushed since the last mark."""
        place = self.marks.pop()
        items = self.stack[place:]
        del self.stack[place:]
        return items

    def _persistent(
        self, kind: str, named: Call, key: str = "", _: Any = None, count: int = 0, view: Any = None
    ) -> Any:
        """What is stored outside of the pickle: a storage, or in old files the source of a module's class."""
        if kind == "module":
            return named
        dtype = STORAGES.get(named.name.rpartition(".")[2])
        if kind != "storage" or dtype is None or view is not None or count < 0:
            raise UserError(f"it has a {named.name}, which is not supported; {SAVE_WEIGHTS}")
        self.storages[key] = Storage(np.dtype(dtype), str(key), count)
        return self.storages[key]

    def _called(self, called: Any, arguments: Any) -> Any:
        """What a call would give, if it is one of those that make up a state dict."""
        name = called.name
        if name == "collections.OrderedDict":
            self._count(sum(map(len, arguments)))
            return dict(*arguments)
        if name in ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"):
            return arguments[0]
        if name in ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2"):
            return self._tensor(*arguments[:4])
        return called

    def _tensor(self, storage: Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> Tensor:
        if len(shape) > 64 or not all(0 <= n < 2**63 for n in (offset, *shape, *strides)):  # PyTorch's own limits
            raise ValueError("a tensor of impossible shape or strides")
        steps = [(n - 1) * stride for n, stride in zip(shape, strides, strict=True)]
        if math.prod(shape) > storage.count:
            raise ValueError(f"a tensor of shape {shape} in {storage.count} numbers")
        if math.prod(shape) and offset + sum(steps) >= storage.count:
            raise ValueError(f"a tensor of shape {shape} that leaves its storage")

        def numbers() -> np.ndarray:
            whole, size = self.numbers(storage), storage.dtype.itemsize
            if len(whole) != storage.count:
                raise ValueError(f"storage {storage.key} has {len(whole)} numbers, not {storage.count}")
            return np.lib.stride_tricks.as_strided(whole[offset:], shape, [size * stride for stride in strides]).copy()

        return Tensor(storage.dtype, tuple(shape), numbers)


def _pairs(items: list[Any]) -> Iterator[tuple[Any, Any]]:
    return zip(items[::2], items[1::2], strict=True)


CONSTANTS: Mapping[str, Callable[[], Any]] = {
    **{"NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False},
    **{"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_SET": list},
}
OBJECTS = {"GLOBAL", "STACK_GLOBAL", "REDUCE", "NEWOBJ", "NEWOBJ_EX", "BUILD", "BINPERSID"}
OBJECTS |= {"INST", "OBJ", "PERSID", "EXT1", "EXT2", "EXT4"}
