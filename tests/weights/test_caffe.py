"""Import of Caffe weights: files of every kind that this module writes itself, damaged ones, and the authors' own.

The authors' file is looked for under $NIN_JAX_CAFFE_WEIGHTS, else in ../shared/reference/weights.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import random
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import nin_jax
from nin_jax import main
from nin_jax.errors import UserError
from nin_jax.models.nin import Model
from nin_jax.weights import caffe

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared"
AUTHORS = Path(os.environ.get("NIN_JAX_CAFFE_WEIGHTS") or SHARED / "reference/weights/cifar10_nin.caffemodel")
SHA256 = "d131ace82eeecbc14bfba817a99eaaef3ecf4fbfeac1d5da2bc2c3ef4d1fb3da"
needs_authors = pytest.mark.skipif(
    not AUTHORS.is_file(),
    reason=f"the authors' weights are not in {AUTHORS}; NIN_JAX_CAFFE_WEIGHTS names another place",
)

SMALL = ((4, 3), (5, 2), (3,))  # widths; the class maps come on top
NAMES = ["conv1", "cccp1", "conv2", "cccp2", "conv3", "cccp3"]


# A writer of the format, independent of the protobuf package.


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def record(field: int, content: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(content)) + content


def unpacked(field: int, values: np.ndarray) -> bytes:
    kind = 5 if values.itemsize == 4 else 1
    return b"".join(varint(field << 3 | kind) + v.tobytes() for v in values.ravel())


FORMATS: dict[str, Callable[[np.ndarray], bytes]] = {
    "packed": lambda a: record(5, a.astype("<f4").tobytes()),
    "packed in two pieces": lambda a: FORMATS["packed"](a.ravel()[:3]) + FORMATS["packed"](a.ravel()[3:]),
    "unpacked": lambda a: unpacked(5, a.astype("<f4")),
    "double": lambda a: record(8, a.astype("<f8").tobytes()),
    "double, unpacked": lambda a: unpacked(8, a.astype("<f8")),
    "raw half": lambda a: number(10, 2) + record(12, a.astype("<f2").tobytes()),
    "raw float": lambda a: number(10, 1) + record(12, a.astype("<f4").tobytes()),
    "raw double": lambda a: number(10, 0) + record(12, a.astype("<f8").tobytes()),
}  # fmt: skip


def old_shape(shape: tuple[int, ...]) -> bytes:
    return b"".join(number(i, n) for i, n in enumerate((1,) * (4 - len(shape)) + shape, 1))


def new_shape(shape: tuple[int, ...]) -> bytes:
    return record(7, record(1, b"".join(map(varint, shape))))


def unpacked_shape(shape: tuple[int, ...]) -> bytes:
    return record(7, b"".join(number(1, n) for n in shape))


def blob(array: np.ndarray, form: str = "packed", shape: Callable = old_shape) -> bytes:
    """With the gradient that a snapshot may hold (diff, field 6) beside the numbers."""
    return shape(array.shape) + FORMATS[form](array) + record(6, bytes(4 * array.size))


def layer(name: str, *blobs: bytes, old: bool = True, extra: bytes = b"") -> bytes:
    """With what Caffe writes before and after the blobs: bottom, top, type; rates, convolution."""
    if old:
        before = record(2, b"data") + record(3, name.encode()) + record(4, name.encode()) + number(5, 4)
        content = before + b"".join(record(6, b) for b in blobs)
        after = struct.pack("<BfBf", 0x3D, 1, 0x3D, 2) + record(10, number(1, 4) + number(3, 2) + number(4, 5))
        return record(2, extra + content + after + extra)
    before = record(1, name.encode()) + record(2, b"Convolution") + record(3, b"data") + record(4, name.encode())
    content = before + b"".join(record(7, b) for b in blobs) + record(106, number(1, 4) + number(3, 2) + number(4, 5))
    return record(100, extra + content + extra)


def arrays(widths=SMALL, channels: int = 1) -> dict[str, list[np.ndarray]]:
    """Kernel (out, in, height, width) and bias of each layer; numbers that half precision holds exactly."""
    rng = np.random.default_rng(0)
    found, names = {}, iter(NAMES)
    for width, side in zip((*widths[:-1], (*widths[-1], 10)), (3, 3, 3), strict=True):
        for i, out in enumerate(width):
            size = 1 if i else side
            shape = (out, channels, size, size)
            found[next(names)] = [rng.normal(size=s).astype(np.float16).astype(np.float32) for s in (shape, (out,))]
            channels = out
    return found


def network(numbers: dict[str, list[np.ndarray]], *, old: bool = True, **kw) -> bytes:
    """A whole file, with layers in between that have no weights."""
    parts = [record(1, b"CIFAR10_full"), record(3, b"data"), *(number(4, n) for n in (1, 3, 32, 32))]
    for name, two in numbers.items():
        parts += [layer(name, *(blob(a, **kw) for a in two), old=old), layer(f"relu_{name}", old=old)]
    return b"".join(parts)


@functools.cache
def like() -> Any:
    model = Model(10, kernels=(3, 3, 3), widths=SMALL)
    return jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)), train=False)["params"])


def wanted(numbers: dict[str, list[np.ndarray]]) -> dict[tuple[str, ...], np.ndarray]:
    """The parameters element by element."""
    flat = {}
    for name, (kernel, bias) in numbers.items():
        block = f"mlpconv{name[-1]}"
        out, into, height, width = kernel.shape
        moved = np.empty((height, width, into, out), np.float32)
        for o, i, h, w in np.ndindex(kernel.shape):
            moved[h, w, i, o] = kernel[o, i, h, w]
        flat |= {(block, name, "kernel"): moved, (block, name, "bias"): bias}
    return flat


def same(params: Any, flat: dict[tuple[str, ...], np.ndarray]) -> bool:
    got = flatten_dict(params)
    return got.keys() == flat.keys() and all(
        got[p].dtype == np.float32 and got[p].shape == flat[p].shape and np.array_equal(got[p], flat[p]) for p in flat
    )


def whole(params: Any) -> Any:
    """The variables of a network with these parameters."""
    return {"params": params, "batch_stats": {}}


def read(content: bytes) -> Any:
    return caffe.to_params(caffe.layers(content), like())


@pytest.mark.parametrize("old", [True, False], ids=["layers", "layer"])
@pytest.mark.parametrize("shape", [old_shape, new_shape, unpacked_shape])
@pytest.mark.parametrize("form", FORMATS)
def test_every_form_of_the_format(form: str, shape: Callable, old: bool) -> None:
    """Both generations, both kinds of shape (a bias is (1, 1, 1, N) or (N,)), every kind of number: exact."""
    numbers = arrays()
    assert same(read(network(numbers, old=old, form=form, shape=shape)), wanted(numbers))


def test_doubles_and_floats_are_rounded_and_kept() -> None:
    """float32 numbers come back bit for bit; doubles are rounded to the nearest float32."""
    rng = np.random.default_rng(1)
    double = {n: [rng.normal(size=a.shape) for a in two] for n, two in arrays().items()}
    single = {n: [a.astype(np.float32) for a in two] for n, two in double.items()}
    assert same(read(network(double, form="double")), wanted(single))
    assert same(read(network(single)), wanted(single))


@pytest.mark.parametrize("axes", [(1, 1), ()], ids=["1x1xOUTxIN", "OUTxIN"])
def test_a_1x1_kernel_may_lie_as_a_matrix(axes: tuple[int, ...]) -> None:
    numbers = arrays()
    parts = []
    for name, (kernel, bias) in numbers.items():
        flat = kernel.reshape(*axes, *kernel.shape[:2]) if kernel.shape[2:] == (1, 1) else kernel
        parts.append(layer(name, blob(flat, shape=new_shape), blob(bias, shape=new_shape), old=False))
    assert same(read(b"".join(parts)), wanted(numbers))


def test_the_number_of_maps_behind_a_name_is_not_part_of_it() -> None:
    """As in the authors' ImageNet network, whose last layers are conv4-1024, cccp7-1024 and cccp8-1024."""
    numbers = arrays()
    renamed = {f"{name}-1024" if i > 2 else name: two for i, (name, two) in enumerate(numbers.items())}
    assert same(read(network(renamed)), wanted(numbers))
    with pytest.raises(UserError, match="two of its layers match one layer"):
        read(network(numbers | renamed))


def test_what_is_not_known_is_passed_over() -> None:
    """Unknown fields of every kind in the network, layers and blobs; layers in any order and of both generations."""
    extra = number(5000, 2**63) + record(5001, b"text") + unpacked(5002, np.ones(2, "f4")) + unpacked(5003, np.ones(2))
    numbers = arrays()
    parts = []
    for i, (name, two) in enumerate(reversed(numbers.items())):
        one = layer(name, *(extra + blob(a) + extra for a in two), old=i % 2 == 0, extra=extra)
        parts += [extra, one]
    assert same(read(b"".join(parts) + extra), wanted(numbers))


def without(name: str) -> bytes:
    return network({n: two for n, two in arrays().items() if n != name})


def changed(name: str, which: int, array: np.ndarray) -> bytes:
    numbers = arrays()
    numbers[name][which] = array
    return network(numbers)


def with_number(value: float) -> bytes:
    numbers = arrays()
    numbers["conv2"][0][1, 2, 0, 1] = value
    return network(numbers)


def last(blobs: list[bytes]) -> bytes:
    """A good file whose layer cccp3 has these blobs."""
    return without("cccp3") + layer("cccp3", *blobs)


KERNEL, BIAS = arrays()["cccp3"]
WRONG = {
    "missing": (without("cccp2"), r"no layer 'cccp2'; it has 'conv1', 'cccp1', 'conv2'"),
    "extra": (network(arrays()) + layer("fc6", blob(BIAS)), r"a layer 'fc6', and the network only"),
    "twice": (network(arrays()) + layer("conv1", blob(BIAS), old=False), r"layer 'conv1' is there twice"),
    "no bias": (last([blob(KERNEL)]), r"layer 'cccp3' has 1 blobs"),
    "three blobs": (last([blob(KERNEL), blob(BIAS), blob(BIAS)]), r"layer 'cccp3' has 3 blobs"),
    "kernel": (changed("conv2", 0, np.ones((5, 3, 5, 5))), r"layer 'conv2': the kernel is 5x3x5x5, but 5x3x3x3 in"),
    "transposed": (changed("conv2", 0, np.ones((3, 5, 3, 3))), r"layer 'conv2': the kernel is 3x5x3x3"),
    "bias": (changed("cccp1", 1, np.ones(4)), r"layer 'cccp1': the bias is 1x1x1x4, but 3 in the network"),
    "no shape": (last([FORMATS["packed"](KERNEL), blob(BIAS)]), r"'cccp3': the kernel is without a shape"),
    "negative": (last([new_shape((2**64 - 10, 2**64 - 3, 1, 1)), blob(BIAS)]), r"'cccp3': the kernel is -10x-3x1x1"),
    "huge shape": (last([new_shape((2**40,) * 4), blob(BIAS)]), r"'cccp3': the kernel is 1099511627776x"),
    "many dimensions": (last([new_shape((1,) * 200), blob(BIAS)]), r"a shape of more than 100 bytes"),
    "no numbers": (last([old_shape(KERNEL.shape), blob(BIAS)]), r"the kernel is 10x3x1x1, but has 0 numbers"),
    "few numbers": (last([old_shape(KERNEL.shape) + FORMATS["packed"](BIAS), blob(BIAS)]), r"but has 10 numbers"),
    "two kinds": (last([blob(KERNEL) + FORMATS["double"](KERNEL), blob(BIAS)]), r"has both data and double_data"),
    "raw type": (last([old_shape(KERNEL.shape) + number(10, 3) + record(12, b"1234"), blob(BIAS)]), r"of type 3"),
    "raw size": (last([old_shape(KERNEL.shape) + number(10, 2) + record(12, b"123"), blob(BIAS)]), r"3 bytes of raw"),
    "nan": (with_number(np.nan), r"layer 'conv2': the kernel has the number nan"),
    "inf": (with_number(-np.inf), r"layer 'conv2': the kernel has the number -inf"),
    "large": (with_number(3e37), r"layer 'conv2': the kernel has the number 3\.\d*e\+37"),
    "not only convolutions": (network(arrays()), r"layer 'fc' of the config's network is not a convolution"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_a_file_that_does_not_fit(what: str) -> None:
    """The layer is named, with what it is and what it should be."""
    content, said = WRONG[what]
    shapes = like()
    if what == "not only convolutions":
        shapes = shapes | {"fc": {"kernel": jax.ShapeDtypeStruct((90, 10), jnp.float32)}}
    with pytest.raises((UserError, caffe.DecodeError), match=said):
        caffe.to_params(caffe.layers(content), shapes)


def nested(depth: int) -> bytes:
    content = b""
    for _ in range(depth):
        content = record(2, content)
    return content


def hostile() -> dict[str, bytes]:
    good = network(arrays())
    return {
        "empty": b"",
        "text": b'name: "CIFAR10_full"\nlayers { name: "conv1" type: CONVOLUTION }\n',
        "hdf5": b"\x89HDF\r\n\x1a\n" + bytes(2000),
        "pickle": b"\x80\x04\x95\x1c\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R.",
        "half": good[: len(good) // 2],
        "one byte short": good[:-1],
        "beyond the file": varint(2 << 3 | 2) + varint(2**62) + b"conv1",
        "a gigabyte": record(2, record(4, b"conv1") + varint(6 << 3 | 2) + varint(2**30) + bytes(1000)),
        "endless number": b"\xff" * 1000,
        "field 0": b"\x02\x00" * 1000,
        "deep": nested(5000),
        "deep groups": record(2, record(4, b"conv1") + record(6, b"\x0b" * 100_000)),
        "groups": b"\x0b" * 100_000 + b"\x0c" * 100_000,
        "open group": good + b"\x0b",
        "many layers": record(2, b"") * 200_000,
        "many blobs": record(2, record(4, b"conv1") + record(6, b"") * 200_000),
        "many dimensions": record(2, record(4, b"conv1") + record(6, new_shape((1,) * 500_000)) * 2),
        "too large": good + record(1, bytes(2**21)),
    }


@pytest.mark.parametrize("what", hostile())
def test_a_hostile_or_wrong_file(what: str, tmp_path: Path) -> None:
    """One line with the file's name."""
    file = tmp_path / "a.caffemodel"
    file.write_bytes(hostile()[what])
    with pytest.raises(
        UserError, match=r"a\.caffemodel (is not a Caffe network, or is damaged|does not fit): "
    ) as caught:
        caffe.read(file, whole(like()), {})
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def damaged(good: bytes, count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Files that differ from a good one: cut, a bit flipped, bytes inserted, a byte made the start of a long number."""
    luck = random.Random(seed)
    for i in range(count):
        how = ("cut", "flip", "insert", "length")[i % 4]
        place = luck.randrange(len(good))
        content = bytearray(good)
        if how == "cut":
            del content[place:]
        elif how == "flip":
            content[place] ^= 1 << luck.randrange(8)
        elif how == "insert":
            content[place:place] = luck.randbytes(luck.randrange(1, 9))
        else:
            # Mostly where a length stands: behind the tag of a layer, a blob or its numbers.
            tags = [p for p in range(len(good) - 1) if good[p] in (0x12, 0x2A, 0x32)]
            place = luck.choice(tags) + 1
            content[place : place + 1] = varint(luck.choice([2**14, 2**24, 2**31, 2**40, 2**63]) + content[place])
        yield how, bytes(content)


def fuzz(count: int, seed: int) -> dict[str, Any]:
    """Reads damaged files; runs in a process of its own, whose memory is watched.

    An accepted file is right when it gives the good file's parameters. Without a checksum in the format one kind of
    damage cannot be seen: a bit flipped inside a number's bytes that leaves a plausible number. So after a flip a
    single parameter may differ; after any other damage, none.
    """
    numbers = arrays()
    two = list(numbers.items())
    good = network(dict(two[:3])) + network(dict(two[3:]), old=False, shape=new_shape)
    right = {path: a.view(np.uint32) for path, a in wanted(numbers).items()}
    shapes = like()
    result: dict[str, Any] = {"accepted": 0, "refused": 0, "wrong": [], "raised": []}
    assert same(read(good), wanted(numbers))
    folder = tempfile.TemporaryDirectory()
    file = Path(folder.name) / "a.caffemodel"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for i, (how, content) in enumerate(damaged(good, count, seed)):
        file.write_bytes(content)
        try:
            params = caffe.read(file, whole(shapes), {})["params"]
        except UserError as mistake:
            result["refused"] += 1
            if "\n" in str(mistake):
                result["raised"].append((i, str(mistake)))
        except BaseException as error:
            result["raised"].append((i, repr(error)))
        else:
            result["accepted"] += 1
            got = flatten_dict(params)
            differing = sum(int((got[path].view(np.uint32) != right[path]).sum()) for path in right)
            if differing > (how == "flip"):
                result["wrong"].append((i, how, differing))
    for content in hostile().values():
        file.write_bytes(content)
        try:
            caffe.read(file, whole(shapes), {})
            result["wrong"].append("hostile")
        except UserError:
            pass
    large = Model(10)
    shapes = jax.eval_shape(lambda: large.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False)["params"])
    for content in large_and_hostile():
        file.write_bytes(content)
        del content
        try:
            caffe.read(file, whole(shapes), {})
            result["wrong"].append("large")
        except UserError:
            pass
    with open(file, "wb") as f:
        f.truncate(5 * 2**30)  # a hole: it takes no room
    try:
        caffe.read(file, whole(shapes), {})
        result["wrong"].append("5 GiB")
    except UserError:
        pass
    result["megabytes"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    folder.cleanup()
    return result


def large_and_hostile() -> Iterator[bytes]:
    """As large as a file of the paper's network may be, and made to grow in memory, in a blob of cccp1 or around it."""
    size = 20_000_000
    names = ("conv1", "cccp1", "cccp2", "conv2", "cccp3", "cccp4", "conv3", "cccp5", "cccp6")
    for blob in (
        record(7, record(1, b"\x01" * size)),  # a shape of 20 million dimensions
        new_shape((160,)) + b"\x2d\0\0\0\0" * (size // 5),  # four million numbers instead of 160
        new_shape((160,)) + b"\x2a\x04\0\0\0\0" * (size // 6),  # the same in packs of one
        b"\x08\x01\x78\x01" * (size // 4),  # known and unknown fields by turns
    ):
        yield b"".join(
            record(2, record(4, n.encode()) + record(6, b"") + record(6, blob * (n == "cccp1"))) for n in names
        )
    yield record(2, record(4, b"cccp1") + record(6, b"") * (size // 2))
    yield record(2, b"") * (size // 2)


def test_five_hundred_damaged_files(clean_env: dict[str, str]) -> None:
    """No traceback, no wrong file accepted, and less than 200 MB of memory over all of them and the hostile ones."""
    process = subprocess.run(
        [sys.executable, __file__, "500", "0"],
        capture_output=True,
        text=True,
        env=clean_env | {"PYTHONPATH": str(ROOT)},
    )
    assert process.returncode == 0, process.stderr
    result = json.loads(process.stdout)
    assert result["raised"] == []
    assert result["wrong"] == []
    assert result["accepted"] + result["refused"] == 500
    assert result["refused"] > 250
    assert result["megabytes"] < 200


# The command.

WORDS = [
    "--config=digits", f"--config.model.widths={SMALL}", "--config.model.kernels=(3, 3, 3)",
    "--config.model.pools=('max', 'max')", "--config.epochs=1", "--config.optimizer.learning_rate=0.001",
    "--config.optimizer.learning_rate_factors=()",
]  # fmt: skip


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "small.caffemodel"
    path.write_bytes(network(arrays()))
    return path


def test_every_mode_takes_the_run(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """eval evaluates it, load_run predicts with it, train goes on from it; source.json says where it is from."""
    words = ["nin_jax", *WORDS, f"--workdir={tmp_path / 'run'}"]
    caffe.main([words[0], str(file), *words[1:]])
    content = file.read_bytes()
    source = {"file": "small.caffemodel", "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert json.loads((tmp_path / "run/source.json").read_text()) == source
    assert (tmp_path / "run/preprocess.npz").exists()

    run = nin_jax.load_run(str(tmp_path / "run"))
    assert run.step == 0
    assert same(jax.tree.map(np.asarray, run.params), wanted(arrays()))
    logits, maps = run(np.zeros((2, 8, 8, 1), np.uint8))
    assert logits.shape == (2, 10)
    np.testing.assert_allclose(logits, maps["class_maps"].mean((1, 2)), rtol=1e-5)

    capsys.readouterr()
    main.run(main.parse([*words, "--mode=eval"]))
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (line["split"], line["examples"], line["step"]) == ("test", 355, 0)

    main.run(main.parse([*words, "--mode=train"]))
    assert "resuming from step 0 of 22" in capsys.readouterr().err
    assert json.loads((tmp_path / "run/summary.json").read_text())["step"] == 22
    with pytest.raises(SystemExit) as left:
        caffe.main([words[0], str(file), *words[1:]])
    assert left.value.code == 2
    assert "holds a run already" in capsys.readouterr().err


def test_a_step_at_rate_0_changes_nothing(file: Path, tmp_path: Path) -> None:
    """The loop starts from the imported parameters, not from its own."""
    words = ["nin_jax", *WORDS, f"--workdir={tmp_path / 'run'}", "--config.optimizer.learning_rate=0.0"]
    caffe.main([words[0], str(file), *words[1:]])
    main.run(main.parse(words))
    run = nin_jax.load_run(str(tmp_path / "run"))
    assert run.step == 22
    assert same(jax.tree.map(np.asarray, run.params), wanted(arrays()))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "the first argument must be the .caffemodel file"),
        (["--config=digits"], "the first argument must be the .caffemodel file"),
        (["nowhere.caffemodel", "--config=digits"], "nowhere.caffemodel: no such file"),
        ([".", "--config=digits"], "no such file"),
        (["FILE", "--config=digits"], "small.caffemodel does not fit: it has no layer 'cccp4'; it has 'conv1', "),
        (["FILE", *(word.replace(f"{SMALL}", "((4, 3), (5, 2), (9,))") for word in WORDS)],
         "small.caffemodel does not fit: layer 'conv3': the kernel is 3x2x3x3, but 9x2x3x3 in the network"),
        (["FILE", "--config=mnist", "--config.data_dir=nowhere", "--config.model.kernels=(3, 3, 3)",
          f"--config.model.widths={SMALL}"], "is not prepared in nowhere"),
    ],
)  # fmt: skip
def test_mistakes_on_the_command_line(words, said, file, tmp_path, monkeypatch, capsys) -> None:
    """Exit 2, one line, and no directory is made."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        caffe.main(["caffe", *(str(file) if word == "FILE" else word for word in words), "--workdir=run"])
    assert left.value.code == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_the_recipe_of_the_zoo() -> None:
    """The drop at update 100,000 exactly, the end at or just after 120,000; rates of weights and biases by layer."""
    from nin_jax.training import build, optim

    config = main.parse(["nin_jax", "--config=cifar10:caffe"]).config
    rate = optim.schedule(config, 390)
    rates = [float(rate(update)) for update in (0, 99_999, 100_000, 390 * config.epochs - 1)]
    np.testing.assert_allclose(rates, [0.1, 0.1, 0.01, 0.01], rtol=1e-6)
    assert 120_000 <= 390 * config.epochs < 120_000 + 390
    run = build.Run(config)
    assert (run.model.pools, run.model.dropout_kind, run.model.relu_on_class_maps) == (("max", "avg"), "inverted", True)
    # From velocity and weights 0, the first update is -rate * factor * gradient.
    ones = {"mlpconv3": {name: {"kernel": jnp.ones(3), "bias": jnp.ones(3)} for name in ("conv3", "cccp6")}}
    zeros = jax.tree.map(jnp.zeros_like, ones)
    recipe = optim.optimizer(config, 390)
    updates, _ = recipe.update(ones, recipe.init(zeros), zeros)
    first = {"/".join(p): float(-u[0]) for p, u in flatten_dict(updates).items()}
    assert first == pytest.approx(
        {
            "mlpconv3/conv3/kernel": 0.1,
            "mlpconv3/conv3/bias": 0.2,
            "mlpconv3/cccp6/kernel": 0.01,
            "mlpconv3/cccp6/bias": 0.01,
        }
    )


# The authors' file.


def authors_shapes() -> Any:
    return jax.eval_shape(lambda: Model(10).init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False)["params"])


@needs_authors
def test_every_number_of_the_authors_lands_where_it_should() -> None:
    """Moved back to Caffe's order, each array's bytes stand in the file behind its layer's name, in order."""
    params = caffe.read(AUTHORS, whole(authors_shapes()), {})["params"]
    content = AUTHORS.read_bytes()
    assert hashlib.sha256(content).hexdigest() == SHA256
    flat = {path[1:]: a for path, a in flatten_dict(params).items()}
    place = count = 0
    for name in ("conv1", "cccp1", "cccp2", "conv2", "cccp3", "cccp4", "conv3", "cccp5", "cccp6"):
        place = content.index(record(4, name.encode()), place)
        for part in ("kernel", "bias"):
            a = flat.pop((name, part))
            raw = (a.transpose(3, 2, 0, 1) if part == "kernel" else a).tobytes()
            place = content.index(record(5, raw), place) + len(raw)
            count += a.size
    assert flat == {}
    assert count == 966_986


def torch_logits(params: Any, images: np.ndarray) -> np.ndarray:
    """The zoo's network in PyTorch, for preprocessed NHWC images."""
    torch = pytest.importorskip("torch")
    from torch.nn import functional as F

    def weight(a) -> Any:
        a = np.asarray(a)
        return torch.from_numpy((a.transpose(3, 2, 0, 1) if a.ndim == 4 else a).copy())

    weights = {path[1:]: weight(a) for path, a in flatten_dict(params).items()}

    def rectified(x, *names):
        for name in names:
            kernel = weights[name, "kernel"]
            x = F.relu(F.conv2d(x, kernel, weights[name, "bias"], padding=kernel.shape[-1] // 2))
        return x

    with torch.no_grad():
        logits = []
        for chunk in torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).split(250):
            x = F.max_pool2d(rectified(chunk, "conv1", "cccp1", "cccp2"), 3, 2, ceil_mode=True)
            x = F.avg_pool2d(rectified(x, "conv2", "cccp3", "cccp4"), 3, 2, ceil_mode=True)
            logits.append(rectified(x, "conv3", "cccp5", "cccp6").mean((2, 3)))
        return torch.cat(logits).numpy()


IMAGENET_STAGES = """(
    "mlpconv(maps=(6, 5, 4), size=11, stride=4, pad=0)", "max_pool()",
    "mlpconv(maps=(8, 7, 6), size=5)", "max_pool()",
    "mlpconv(maps=(9, 8, 7), size=3)", "max_pool()", "dropout(rate=0.5)",
    "mlpconv(maps=(10, 9), size=3)",
)"""


def test_the_imagenet_network_as_its_authors_published_it(tmp_path: Path) -> None:
    """Names with the number of maps, 1x1 kernels as matrices, a mean picture of 256 x 256 in BGR; no training data is there.

    The logits of pictures in RGB are those of PyTorch's layers, one after the other.
    """
    torch = pytest.importorskip("torch")
    from torch.nn import functional as F

    experiment = tmp_path / "small.py"
    experiment.write_text(f"""
from nin_jax.config import experiment

def get_config(arg=None):
    config = experiment("imagenet")
    with config.unlocked():
        config.model.layers = {IMAGENET_STAGES}
    return config
""")
    rng, channels, numbers = np.random.default_rng(0), 3, {}
    for block, (size, widths) in enumerate([(11, (6, 5, 4)), (5, (8, 7, 6)), (3, (9, 8, 7)), (3, (10, 9, 1000))], 1):
        cccp = sum(name.startswith("cccp") for name in numbers)
        for i, out in enumerate(widths):
            side = 1 if i else size
            kernel = rng.normal(0, np.sqrt(2 / (channels * side**2)), (out, channels, side, side)).astype(np.float32)
            numbers[f"cccp{cccp + i}" if i else f"conv{block}"] = kernel, rng.normal(0, 0.1, out).astype(np.float32)
            channels = out
    parts = []
    for name, (kernel, bias) in numbers.items():
        matrix = kernel.reshape(1, 1, *kernel.shape[:2]) if kernel.shape[2:] == (1, 1) else kernel
        parts.append(layer(name if name[-1] < "7" and name != "conv4" else f"{name}-1024", blob(matrix), blob(bias)))
    (tmp_path / "nin.caffemodel").write_bytes(b"".join(parts))
    mean = rng.uniform(80, 140, (3, 256, 256)).astype(np.float32)
    (tmp_path / "mean.binaryproto").write_bytes(blob(mean))
    words = [f"--config={experiment}", f"--workdir={tmp_path / 'run'}", f"--mean={tmp_path / 'mean.binaryproto'}"]
    caffe.main(["caffe", str(tmp_path / "nin.caffemodel"), *words, f"--config.data_dir={tmp_path / 'nowhere'}"])

    pictures = rng.integers(0, 256, (2, 224, 224, 3), np.uint8)
    logits, _ = nin_jax.load_run(str(tmp_path / "run"))(pictures)
    x = torch.from_numpy(pictures[..., ::-1].transpose(0, 3, 1, 2) - mean[None, :, 16:240, 16:240])
    for name, (kernel, bias) in numbers.items():
        if name in ("conv2", "conv3", "conv4"):
            x = F.max_pool2d(x, 3, 2, ceil_mode=True)
        stride, pad = (4, 0) if name == "conv1" else (1, kernel.shape[-1] // 2)
        x = F.relu(F.conv2d(x, torch.from_numpy(kernel), torch.from_numpy(bias), stride, pad))
    expected = x.mean((2, 3)).numpy()
    assert expected.shape == (2, 1000)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file"),
        (b"\xff\xff", "not a mean image of Caffe, or is damaged"),
        (blob(np.zeros((3, 7, 8), np.float32)), "1x3x7x8; it must be 1x8x8 or larger"),
        (blob(np.zeros((1, 8, 7), np.float32)), "1x1x8x7; it must be 1x8x8 or larger"),
        (new_shape((1, 9, 9)) + record(5, bytes(4)), "has 1 numbers"),
        (blob(np.zeros((1, 9, 9), np.float32)), "must have one mean"),
    ],
    ids=["missing", "noise", "channels", "small", "short", "no mean op"],
)
def test_a_mean_picture_that_does_not_fit(content, said, file, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path("mean").write_bytes(content)
    preprocess = "('mean()',)" if "must have" not in said else "('scale(divisor=255)',)"
    with pytest.raises(SystemExit) as left:
        caffe.main(["caffe", str(file), *WORDS, "--workdir=run", "--mean=mean", f"--config.preprocess={preprocess}"])
    assert left.value.code == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert not Path("run").exists()


@pytest.mark.slow
@needs_authors
@pytest.mark.skipif(not (SHARED / "tfds/cifar10").is_dir(), reason=f"CIFAR-10 is not prepared in {SHARED / 'tfds'}")
def test_the_authors_network_gives_their_number(tmp_path: Path, clean_env: dict[str, str]) -> None:
    """10.43 % of the 10,000 test images, logits as PyTorch's to 1e-3 (they reach 60), and a bit-equal resumption."""
    pytest.importorskip("torch")
    start = tmp_path / "start"
    # Five updates an epoch, so that there are two checkpoints to train from; preprocess.npz is of all 50,000 images.
    words = ["--config=cifar10:caffe", f"--config.data_dir={SHARED / 'tfds'}", "--config.optimizer.learning_rate=0.001"]
    short = ["--config.train_split=train[:640]", "--config.eval_split=test[:200]", "--config.epochs=2"]
    env = clean_env | {"PYTHONPATH": str(ROOT)}

    def command(module: str, *more: str) -> str:
        process = subprocess.run(
            [sys.executable, "-m", module, *more], capture_output=True, text=True, env=env, cwd=tmp_path
        )
        assert process.returncode == 0, process.stderr
        return process.stdout

    command("nin_jax.weights.caffe", str(AUTHORS), *words, f"--workdir={start}")

    def evaluated(*more: str) -> dict[str, Any]:
        return json.loads(command("nin_jax.main", *words, f"--workdir={start}", "--mode=eval", *more).splitlines()[-1])

    line = evaluated()
    assert line["examples"] == 10_000
    assert line["error_pct"] == pytest.approx(10.43, abs=0.02)
    assert line["loss"] == pytest.approx(0.490, abs=0.001)

    from nin_jax.data.datasets import cifar10

    # PyTorch has one thread here, and this process compiles slow programs: a tenth of the images.
    images, labels = cifar10.load("test[:1000]", str(SHARED / "tfds"))
    flat = images.reshape(1000, -1).astype(np.float64)
    flat -= flat.mean(1, keepdims=True)
    flat *= 55 / np.linalg.norm(flat, axis=1, keepdims=True)
    with np.load(start / "preprocess.npz") as stats:
        flat = (flat - stats["1/mean"].ravel()) @ stats["1/matrix"].reshape(3072, 3072)
    run = nin_jax.load_run(str(start))
    theirs = torch_logits(run.params, flat.reshape(images.shape).astype(np.float32))
    ours = run.logits(images)
    assert np.abs(theirs).max() > 30
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-3)
    shifted = theirs - theirs.max(1, keepdims=True)
    loss = np.log(np.exp(shifted).sum(1)) - shifted[np.arange(1000), labels]
    line = evaluated("--config.eval_split=test[:1000]")
    assert line["examples"] == 1000
    assert line["error_pct"] == pytest.approx(100 * np.mean(theirs.argmax(1) != labels), abs=0.01)
    assert line["loss"] == pytest.approx(loss.mean(), abs=1e-4)

    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    whole.mkdir()
    shutil.copy(start / "preprocess.npz", whole)
    command("nin_jax.weights.caffe", str(AUTHORS), *words, *short, f"--workdir={whole}")
    command("nin_jax.main", *words, *short, f"--workdir={whole}")
    shutil.copytree(whole, resumed)
    shutil.rmtree(resumed / "checkpoints/10")
    (resumed / "summary.json").unlink()
    command("nin_jax.main", *words, *short, f"--workdir={resumed}")
    one, other = nin_jax.load_run(str(whole)), nin_jax.load_run(str(resumed))
    assert one.step == other.step == 10
    trained = flatten_dict(jax.tree.map(np.asarray, one.params))
    assert all(np.array_equal(trained[path], a) for path, a in flatten_dict(other.params).items())
    assert not np.array_equal(trained["mlpconv1", "conv1", "kernel"], run.params["mlpconv1"]["conv1"]["kernel"])


if __name__ == "__main__":
    print(json.dumps(fuzz(int(sys.argv[1]), int(sys.argv[2]))))
