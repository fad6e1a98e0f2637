"""A run directory from the weights of a Caffe network.

    python -m nin_jax.weights.caffe FILE.caffemodel --config=experiments/NAME.py[:ARG] --workdir=DIR
                                   [--mean=FILE.binaryproto] [--check=FILE.npz] [--config.KEY=VALUE ...]

DIR becomes a run at step 0, with fitted preprocessing, and the file's name and SHA-256 in source.json: --mode=eval evaluates
it, --mode=train fine-tunes it, `nin_jax.load_run` loads it. With --mean, the mean(per='pixel') of the config's `preprocess` is
the centre of that mean image (blue, green, red, as in Caffe), and no training data is needed. --check compares the logits
with those in a file (see `imported.check`). Layers are matched by name.

A caffemodel is a protobuf message, NetParameter. It holds layers (field 2, V1LayerParameter, before 2015; field 100,
LayerParameter, since), each with a name and blobs (fields 4 and 6; 1 and 7): the kernel, out x in x height x width, and
the bias; a 1x1 kernel may be stored as a matrix, (1 x 1 x) out x in. "conv4-1024" is conv4 in the authors' ImageNet network,
whose names end in the number of channels where a layer was changed. Files come from the web, so nothing in one is trusted:
lengths, shapes, counts and numbers are checked, and memory stays in proportion to the network that the config describes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from nin_jax.data import fitted
from nin_jax.data.preprocess import mean
from nin_jax.errors import UserError, one_line
from nin_jax.storage import expanded
from nin_jax.training.build import Run
from nin_jax.weights.imported import Options, command

GENERATIONS = {2: (4, 6), 100: (1, 7)}  # a network's field for a layer: that layer's fields for name and blobs
RAW_TYPES = {0: "<f8", 1: "<f4", 2: "<f2"}  # raw_data_type of NVIDIA's Caffe: DOUBLE, FLOAT, FLOAT16
BYTES_A_NUMBER = 20  # value and gradient in double precision, each with its own tag: no writer needs more
BYTES_OF_TEXT = 2**20  # for names and settings of the layers; a large network has a tenth of it
MOST_OF_A_MEAN = 2**26  # bytes; a mean image of 256 x 256 takes a twentieth of it in double precision
MAX_FIELDS = 10_000  # of one message; the largest networks have hundreds of layers
LARGEST = 1e9  # far above any weight, far below one whose exponent has a flipped high bit


def _blob_messages() -> tuple[Any, Any]:
    """Message classes of BlobProto and BlobShape, with the fields of Caffe and of NVIDIA's fork that matter here.

    The shape is declared as bytes and parsed separately, so that a hostile one takes no more memory than it has bytes.
    """
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="nin_jax/caffe.proto", package="nin_jax", syntax="proto2")

    def message(name: str, *fields: tuple[str, int, Any, Any]) -> None:
        described = file.message_type.add(name=name)
        for field, number, kind, label in fields:
            described.field.add(name=field, number=number, type=kind, label=label)

    one, many = kinds.LABEL_OPTIONAL, kinds.LABEL_REPEATED  # repeated numbers are read packed and unpacked
    message("BlobShape", ("dim", 1, kinds.TYPE_INT64, many))
    message(
        "BlobProto",
        ("num", 1, kinds.TYPE_INT32, one),
        ("channels", 2, kinds.TYPE_INT32, one),
        ("height", 3, kinds.TYPE_INT32, one),
        ("width", 4, kinds.TYPE_INT32, one),
        ("data", 5, kinds.TYPE_FLOAT, many),
        ("shape", 7, kinds.TYPE_BYTES, one),
        ("double_data", 8, kinds.TYPE_DOUBLE, many),
        ("raw_data_type", 10, kinds.TYPE_INT32, one),
        ("raw_data", 12, kinds.TYPE_BYTES, one),
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    blob, shape = (pool.FindMessageTypeByName(f"nin_jax.{name}") for name in ("BlobProto", "BlobShape"))
    return message_factory.GetMessageClass(blob), message_factory.GetMessageClass(shape)


BlobProto, BlobShape = _blob_messages()


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    """The number that begins at `place`, seven bits per byte, and the place after it."""
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(data):
            raise DecodeError("it ends in the middle of a number")
        value |= (data[place] & 127) << shift
        place += 1
        if data[place - 1] < 128:
            return value, place
    raise DecodeError("a number of more than ten bytes")


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The fields of a message that have a length (texts and messages), as (number, content), without copying.

    Networks and layers are walked instead of parsed, because an empty message takes two bytes in a file and forty times
    that in memory. Raises `DecodeError` for what is not a message.
    """
    place = 0
    for _ in range(MAX_FIELDS):
        if place == len(data):
            return
        tag, place = _varint(data, place)
        number, kind = tag >> 3, tag & 7
        if not 1 <= number < 2**29 or kind not in (0, 1, 2, 5):
            raise DecodeError(f"no field begins with {tag}")
        if kind == 0:
            _, place = _varint(data, place)
            continue
        length = {1: 8, 5: 4}.get(kind)
        if length is None:
            length, place = _varint(data, place)
        if length > len(data) - place:
            raise DecodeError(f"field {number} has {length} bytes, of which {len(data) - place} are there")
        if kind == 2:
            yield number, data[place : place + length]
        place += length
    if place < len(data):
        raise DecodeError(f"a message of more than {MAX_FIELDS} fields")


def layers(content: bytes) -> dict[str, list[memoryview]]:
    """The encoded blobs of each layer that has any, by the layer's name.

    Raises `DecodeError` for what is not a network, `UserError` for a network with two such layers of one name.
    """
    found: dict[str, list[memoryview]] = {}
    for generation, layer in _fields(memoryview(content)):
        if generation not in GENERATIONS:
            continue
        name_field, blobs_field = GENERATIONS[generation]
        name, blobs = "", []
        for number, value in _fields(layer):
            if number == name_field:
                name = bytes(value[:100]).decode(errors="replace")
            elif number == blobs_field:
                blobs.append(value)
        if blobs and name in found:
            raise UserError(f"layer {name!r} is there twice")
        if blobs:
            found[name] = blobs
    return found


def array(blob: bytes | memoryview, shapes: Sequence[tuple[int, ...]]) -> np.ndarray:
    """A blob's numbers as float32, in the first of `shapes`.

    Args:
      blob: an encoded BlobProto. Its numbers are `data` (float, packed or not), `double_data`, or NVIDIA's `raw_data`
        in double, single or half precision; its shape is `shape`, or the four numbers of older files.
      shapes: the shapes that it may have, in Caffe's order.

    Raises `UserError` for a wrong shape, count or number, `DecodeError` for what is not a blob.
    """
    message = BlobProto.FromString(bytes(blob))
    shape = _shape(message)
    if shape not in shapes:
        raise UserError(f"is {_by(shape)}, but {_by(shapes[0])} in the network")

    stored = [name for name in ("data", "double_data", "raw_data") if len(getattr(message, name))]
    if len(stored) > 1:
        raise UserError(f"has both {stored[0]} and {stored[1]}")
    if stored == ["raw_data"]:
        kind = RAW_TYPES.get(message.raw_data_type)
        if kind is None or len(message.raw_data) % np.dtype(kind).itemsize:
            raise UserError(f"has {len(message.raw_data)} bytes of raw_data of type {message.raw_data_type}")
        numbers = np.frombuffer(message.raw_data, kind)
    elif stored == ["double_data"]:
        numbers = np.fromiter(message.double_data, np.float64, len(message.double_data))
    else:
        numbers = np.fromiter(message.data, np.float32, len(message.data))
    if numbers.size != math.prod(shape):
        raise UserError(f"is {_by(shape)}, but has {numbers.size} numbers")
    with np.errstate(over="ignore"):  # a double too large for float32 becomes infinite, and is refused
        numbers = numbers.astype(np.float32)
    good = np.abs(numbers) <= LARGEST  # and so not NaN
    if not good.all():
        raise UserError(f"has the number {numbers[~good][0]}, which cannot be a weight")
    return numbers.reshape(shapes[0])


def _shape(message: Any) -> tuple[int, ...]:
    old = ("num", "channels", "height", "width")
    if any(message.HasField(name) for name in old):
        return tuple(getattr(message, name) for name in old)
    if len(message.shape) > 100:
        raise DecodeError("a shape of more than 100 bytes")
    return tuple(BlobShape.FromString(message.shape).dim)


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "without a shape"


def to_params(found: Mapping[str, Sequence[memoryview]], like: Any) -> Any:
    """The parameters of a network from the layers of a file.

    Args:
      found: from `layers`.
      like: tree of the parameters' shapes. The layer NAME fills .../NAME/kernel and .../NAME/bias.

    Returns:
      the same tree of float32 arrays; kernels out x in x height x width become `[height, width, in, out]`.

    Raises `UserError` for a layer that is missing, left over or of another shape, `DecodeError` for a damaged one.
    """
    flat: Any = flatten_dict(like)
    wanted = {path[-2]: len(leaf.shape) for path, leaf in flat.items() if path[-1] == "kernel"}
    names = [name if name in wanted else re.sub(r"-\d+$", "", name) for name in found]
    if len(set(names)) < len(names):
        raise UserError(f"two of its layers match one layer of the network: {', '.join(map(repr, found))}")
    found = dict(zip(names, found.values(), strict=True))
    for name, dimensions in wanted.items():
        if dimensions != 4:
            raise UserError(f"layer {name!r} of the config's network is not a convolution; only those can be imported")
        if name not in found:
            raise UserError(f"it has no layer {name!r}; it has {', '.join(map(repr, found)) or 'no weights'}")
        if len(found[name]) != 2:
            raise UserError(f"layer {name!r} has {len(found[name])} blobs; it must have a kernel and a bias")
    for name in found:
        if name not in wanted:
            raise UserError(f"it has a layer {name!r}, and the network only {', '.join(wanted)}")
    params = {}
    for path, leaf in flat.items():
        kernel = path[-1] == "kernel"
        shape = leaf.shape
        if kernel:
            caffe = [(shape[3], shape[2], *shape[:2])]
            if shape[:2] == (1, 1):
                caffe += [(1, 1, shape[3], shape[2]), (shape[3], shape[2])]
        else:
            caffe = [shape, (1, 1, 1, *shape)]
        try:
            value = array(found[path[-2]][0 if kernel else 1], caffe)
        except UserError as error:
            raise UserError(f"layer {path[-2]!r}: the {path[-1]} {error}") from error
        except DecodeError as error:
            raise DecodeError(f"layer {path[-2]!r}: the {path[-1]}: {one_line(error)}") from error
        params[path] = np.ascontiguousarray(value.transpose(2, 3, 1, 0)) if kernel else value
    return unflatten_dict(params)


def mean_image(file: Path, shape: tuple[int, ...]) -> np.ndarray:
    """The centre, float32 `shape` = `[H, W, C]`, of a mean image (1 x) C x height x width. Raises `UserError`."""
    try:
        with open(file, "rb") as f:
            content = f.read(MOST_OF_A_MEAN + 1)
        if len(content) > MOST_OF_A_MEAN:
            raise UserError(f"--mean={file} has more than {MOST_OF_A_MEAN:,} bytes")
        found = _shape(BlobProto.FromString(content))
        height, width, channels = shape
        outer, inner = found[:-3], found[-3:]
        if outer not in ((), (1,)) or inner[:1] != (channels,) or inner[1] < height or inner[2] < width:
            raise UserError(f"--mean={file} is {_by(found)}; it must be {channels}x{height}x{width} or larger")
        whole = array(content, [found]).reshape(inner)
    except OSError as error:
        raise UserError(f"--mean={file} cannot be read: {error.strerror}") from error
    except DecodeError as error:
        raise UserError(f"--mean={file} is not a mean image of Caffe, or is damaged: {one_line(error)}") from error
    y, x = (inner[1] - height) // 2, (inner[2] - width) // 2
    return np.ascontiguousarray(whole[:, y : y + height, x : x + width].transpose(1, 2, 0))


def prepare(run: Run, options: Options) -> fitted.Stats | None:
    """With --mean, the preprocessing of a run whose only fitted op is the mean. Raises `UserError`."""
    if "mean" not in options:
        return None
    ops = run.config.preprocess
    if [op.entry for op in ops if not op.entry.PER_IMAGE] != [mean]:
        raise UserError(
            f"--mean: preprocess={tuple(map(str, ops))} must have one mean(per='pixel'), and nothing else to fit"
        )
    image = mean_image(expanded(options["mean"]), run.info.image_shape)
    return [{"mean": image} if op.entry is mean else {} for op in ops]


def read(file: Path, like: dict[str, Any], options: Options) -> dict[str, Any]:
    """Variables shaped `like` from a file. Raises `UserError`."""
    if like["batch_stats"]:
        raise UserError("a Caffe network of this kind has no batch normalisation: set model.batch_norm=False")
    limit = BYTES_OF_TEXT + BYTES_A_NUMBER * sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(like["params"]))
    try:
        with open(file, "rb") as f:
            content = f.read(limit + 1)
        if len(content) > limit:
            raise UserError(f"it has more than the {limit:,} bytes that the network's parameters can take")
        return {"params": to_params(layers(content), like["params"]), "batch_stats": {}}
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    except DecodeError as error:
        raise UserError(f"{file} is not a Caffe network, or is damaged: {one_line(error)}") from error
    except UserError as error:
        raise UserError(f"{file} does not fit: {error}") from error


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line above; ends the process with the exit code of `nin_jax.main`'s contract."""
    command(read, "the .caffemodel file", __doc__, argv, ("mean",), prepare)


if __name__ == "__main__":
    main()
