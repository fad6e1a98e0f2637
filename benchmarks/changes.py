"""Every change made for speed, against what it replaced; and those that did not pay.

Sizes are those of CIFAR-10's network with 64 images. Unless a row says otherwise it times an operation and its gradients.
"""

from __future__ import annotations

import contextlib
import functools
import subprocess
import sys
import unittest.mock
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax import lax

from benchmarks import measure
from benchmarks.runs import on_noise
from nin_jax import layers
from nin_jax.console import say
from nin_jax.devices.cpu_memory import reuse_memory
from nin_jax.layers import conv, cpu
from nin_jax.layers.cpu import patches, pieces, products, theorem, tuning
from nin_jax.layers.dropout import random_bits

Ways = dict[str, Callable[[], Any]]  # the same work done in several ways

ROUNDS = 5
UPDATES = 5  # steps per turn, of memory


def normal(*shape: int) -> jax.Array:
    """Numbers for an operation to work on."""
    return jnp.asarray(np.random.default_rng(len(shape)).standard_normal(shape, np.float32))


def compiled(f: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    """Runs f, compiled now."""
    ready = jax.jit(f).lower(*arguments).compile()
    return lambda: jax.block_until_ready(ready(*arguments))


def gradients(f: Callable[..., jax.Array], *arguments: jax.Array) -> Callable[[], Any]:
    """Runs f and its gradients by all arguments, compiled now."""
    y = jax.eval_shape(f, *arguments)

    def both(cotangent: jax.Array, *arguments: jax.Array) -> Any:
        y, back = jax.vjp(f, *arguments)
        return y, back(cotangent)

    return compiled(both, normal(*y.shape).astype(y.dtype), *arguments)


def textbook(x: jax.Array, kernel: jax.Array, pad: int) -> jax.Array:
    """XLA's own convolution."""
    return conv.textbook(x, kernel, None, pad=pad, stride=1, dtype=x.dtype)


def convolutions(images: int, side: int, channels: int, features: int, size: int) -> Ways:
    """One convolution in every way there is."""
    x, kernel = normal(images, side, side, channels), normal(size, size, channels, features)
    ways: Mapping[str, Any] = {"XLA's convolution": textbook, "patches": patches.convolve}
    if channels >= tuning.THEOREM_CHANNELS:
        groups = 4 - tuning.frequency_groups(images)  # 1 where 3 are used, and 3 where 1 is
        ways = ways | {
            "the convolution theorem": theorem.convolve,
            "the theorem, XLA's FFT": by_fft,
            "the theorem, rows and columns as real numbers": by_real_transforms,
            f"the theorem, frequencies in groups: {groups}": functools.partial(theorem.convolve, groups=groups),
        }
    return {name: gradients(lambda x, k, way=way: way(x, k, size // 2), x, kernel) for name, way in ways.items()}


def strided(trained: bool) -> Ways:
    """The first convolution of ImageNet's networks; its gradient by the image is not wanted."""
    x, kernel, shift = normal(32, 224, 224, 3), normal(11, 11, 3, 96), normal(96)

    def by_theorem(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
        return products.add_bias(theorem.convolve(*patches.fold_stride(x, kernel, 0, 4), 0), bias)

    ways: dict[str, Callable[..., jax.Array]] = {
        "XLA's convolution": lambda x, k, b: conv.textbook(x, k, b, pad=0, stride=4, dtype=x.dtype),
        "the convolution theorem": by_theorem,
        "patches": lambda x, k, b: patches.convolve(*patches.fold_stride(x, k, 0, 4), 0, b),
    }
    if not trained:
        return {name: compiled(way, x, kernel, shift) for name, way in ways.items()}
    ways = {name: lambda x, k, b, way=way: way(lax.stop_gradient(x), k, b) for name, way in ways.items()}
    return {name: gradients(way, x, kernel, shift) for name, way in ways.items()}


def by_fft(x: jax.Array, kernel: jax.Array, pad: int) -> jax.Array:
    """The convolution theorem with XLA's Fourier transform and complex products."""
    size, height, width = kernel.shape[0], *x.shape[1:3]
    points = height + size - 1, width + size - 1
    images = jnp.fft.rfft2(x.transpose(3, 0, 1, 2), points)  # c b p q
    filters = jnp.fft.rfft2(kernel[::-1, ::-1].transpose(2, 3, 0, 1), points)  # c f p q
    y = jnp.fft.irfft2(jnp.einsum("cbpq,cfpq->bfpq", images, filters), points)
    return y[:, :, pad : pad + height, pad : pad + width].transpose(0, 2, 3, 1)


def by_real_transforms(x: jax.Array, kernel: jax.Array, pad: int) -> jax.Array:
    """As `theorem.convolve`, with columns transformed as the rows are: nine products for four frequencies, not six."""
    rows, columns = (theorem.dft_matrices(n, kernel.shape[0], pad, complex_input=False) for n in x.shape[1:3])
    images = theorem.transform(rows[0], columns[0], x.transpose(1, 2, 0, 3))
    filters = theorem.transform(rows[1], columns[1], kernel)
    product = jnp.einsum("pqbc,pqcf->pqbf", images, filters)
    return theorem.transform(rows[2], columns[2], product).transpose(2, 0, 1, 3)


def bias() -> Ways:
    """The first convolution and its bias; its gradient by the image is not wanted."""
    x, kernel, shift = normal(64, 32, 32, 3), normal(5, 5, 3, 192), normal(192)
    return {
        "added": gradients(lambda k, b: products.add_bias(patches.convolve(x, k, 2), b), kernel, shift),
        "the weight of a map of ones": gradients(lambda k, b: patches.convolve(x, k, 2, b), kernel, shift),
    }


def pools() -> Ways:
    """The first pool."""

    def by_window(x: jax.Array) -> jax.Array:
        edges = ((0, 0), (0, 1), (0, 1), (0, 0))
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), edges)

    x = normal(64, 32, 32, 96)
    return {"XLA's window": gradients(by_window, x), "slices": gradients(layers.max_pool, x)}


def pointwise() -> Ways:
    """The most expensive 1x1 convolution."""
    ways = {
        "XLA's convolution": lambda x, k: lax.conv_general_dilated(
            x, k, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        ),
        "one product": lambda x, k: (x.reshape(-1, 192) @ k[0, 0]).reshape(*x.shape[:-1], 160),
        "one product, the kernel's gradient in halves": lambda x, k: products.matmul(x, k[0, 0]),
    }
    return {name: gradients(way, normal(64, 32, 32, 192), normal(1, 1, 192, 160)) for name, way in ways.items()}


class Block(nn.Module):
    """An mlpconv layer and its pool."""

    widths: Sequence[int]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        names = zip(("conv", "cccp1", "cccp2"), self.widths, strict=True)
        rows = [layers.Layer(name, width, layers.gaussian("he")) for name, width in names]
        return pieces.in_pieces(layers.MLPConv(rows, size=5), layers.max_pool, x)[1]


def evaluated(widths: Sequence[int], *shape: int) -> Ways:
    """A block and its pool in an evaluation; without gradients."""
    layer, x = Block(widths), normal(*shape)
    variables = jax.jit(layer.init)(jax.random.key(0), x[:1])
    with unittest.mock.patch.object(tuning, "PIECES_FROM_BYTES", 2**60):
        whole = compiled(lambda *arguments: layer.apply(*arguments), variables, x)
    return {"all images at once": whole, "a few after the other": compiled(layer.apply, variables, x)}


def evaluations() -> Ways:
    """In batches as large as a step's, and in one."""
    return {
        f"{size:,} at a time": on_noise("cifar10", 128, examples=1024, eval_batch_size=size).evaluate
        for size in (128, 1024)
    }


def low_precision() -> Ways:
    """The most expensive 1x1 convolution in bfloat16, by XLA and by PyTorch, and in float32."""
    x, kernel = normal(64 * 32 * 32, 192), normal(192, 160)
    types = jnp.float32, jnp.bfloat16
    sides = {f"XLA, {jnp.dtype(t)}": gradients(jnp.matmul, x.astype(t), kernel.astype(t)) for t in types}
    theirs = [torch.from_numpy(np.array(a)).bfloat16().requires_grad_() for a in (x, kernel)]
    cotangent = torch.ones(x.shape[0], kernel.shape[1], dtype=torch.bfloat16)
    return sides | {"PyTorch, bfloat16": lambda: torch.autograd.grad(theirs[0] @ theirs[1], theirs, cotangent)}


def low_precision_pool() -> Ways:
    """The first pool with the ReLU before it and, as the next convolution wants it, its output's axes in another order."""

    def pool(x: jax.Array) -> jax.Array:
        return layers.max_pool(jax.nn.relu(x)).astype(jnp.float32).transpose(1, 2, 0, 3)

    x = normal(64, 32, 32, 96).astype(jnp.bfloat16)
    with conv.portable(True):
        in_bfloat16 = gradients(pool, x)
    return {"in bfloat16": in_bfloat16, "in float32": gradients(pool, x)}


def rounding() -> Ways:
    """An update of CIFAR-10's network in bfloat16."""
    ways: Ways = {}
    for name, widen in {"by XLA": products.as_float32, "in integers": products.widen}.items():
        with unittest.mock.patch.object(cpu, "widen", widen):
            jax.clear_caches()  # JAX's keys know nothing of it
            ways[name] = on_noise("cifar10", 128, "bfloat16", examples=256).update
    return ways


def dropout() -> Ways:
    """The mask of the first pool's output, by example; without gradients."""
    key, x = jax.random.key(0), normal(64, 16, 16, 96)

    def each(draw: Callable[[jax.Array], jax.Array]) -> jax.Array:
        return jax.vmap(lambda i: draw(jax.random.fold_in(key, i)))(jnp.arange(64))

    shape = x.shape[1:]
    masks: Mapping[str, Callable[[], jax.Array]] = {
        "floats": lambda: each(lambda key: jax.random.bernoulli(key, 0.5, shape)),
        "numbers of 16 bits": lambda: each(lambda key: jax.random.bits(key, shape, jnp.uint16)) < 32768,
        "all bits of the generator": lambda: random_bits(key, x.shape, None) < 32768,
    }
    return {name: compiled(lambda x, mask=mask: jnp.where(mask(), x, 0.0), x) for name, mask in masks.items()}


def dispatches() -> Ways:
    """Four steps of a small network, in one dispatch and in four."""
    one = on_noise("digits", 64, examples=256)
    with unittest.mock.patch("nin_jax.data.memory.steps_per_dispatch", return_value=4):
        four = on_noise("digits", 64, examples=256)
    return {"one a dispatch (four updates)": lambda: one.update(4), "four a dispatch (four updates)": four.update}


def memory() -> dict[str, Any]:
    """A step of MNIST's network in two processes that take turns, with `reuse_memory` and without."""
    with contextlib.ExitStack() as stack:

        def side(name: str) -> Callable[[], Any]:
            command = [sys.executable, "-m", "benchmarks.changes", name]
            pipes = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            child = stack.enter_context(pipes)
            assert child.stdin is not None
            assert child.stdout is not None
            asked, told = child.stdin, child.stdout

            def updates() -> None:
                print(file=asked, flush=True)
                if not told.readline():
                    raise AssertionError(f"{command} ended with {child.wait()}")

            return updates

        return measure.alternate({name: side(name) for name in ("given back", "reused")}, ROUNDS, UPDATES)


# What is done, the way in use, and every way; the first one is what was used before.
CASES: dict[str, tuple[str, Callable[[], Ways]]] = {
    "1x1 convolution, 192 to 160 maps of 32x32": ("one product, the kernel's gradient in halves", pointwise),
    "5x5 convolution, 3 to 192 maps of 32x32": ("patches", lambda: convolutions(64, 32, 3, 192, 5)),
    "5x5 convolution, 96 to 192 maps of 16x16": ("the convolution theorem", lambda: convolutions(64, 16, 96, 192, 5)),
    "3x3 convolution, 192 to 192 maps of 8x8": ("the convolution theorem", lambda: convolutions(64, 8, 192, 192, 3)),
    "11x11 convolution of stride 4, 3 to 96 maps of 224x224, 32 images": ("patches", lambda: strided(True)),
    "11x11 convolution of stride 4, 3 to 96 maps of 224x224, 32 images, without gradients": (
        "XLA's convolution",
        lambda: strided(False),
    ),
    "bias of a 5x5 convolution, 3 to 192 maps of 32x32": ("the weight of a map of ones", bias),
    "3x3 max pool, 96 maps of 32x32": ("slices", pools),
    "an evaluation's first block, 128 images": (
        "a few after the other",
        lambda: evaluated((192, 160, 96), 128, 32, 32, 3),
    ),
    "an evaluation's second block, 1,024 images": (
        "a few after the other",
        lambda: evaluated((192, 192, 192), 1024, 16, 16, 96),
    ),
    "an evaluation of CIFAR-10's network, 1,024 images": ("1,024 at a time", evaluations),
    "3x3 max pool of bfloat16, 96 maps of 32x32, and what is around it": ("in float32", low_precision_pool),
    "gradient of a convolution's input rounded to bfloat16, CIFAR-10's update": (
        "in integers",
        rounding,
    ),
    "1x1 convolution in bfloat16, 192 to 160 maps of 32x32": ("XLA, bfloat16", low_precision),
    "dropout's mask, 96 maps of 16x16": ("all bits of the generator", dropout),
    "several updates a dispatch, the digits' network": ("one a dispatch (four updates)", dispatches),
}


def main() -> None:
    """All of them."""
    rows = []
    for what, (used, make) in CASES.items():
        row: dict[str, Any] = {"what": what, "used": used} | measure.alternate(make(), ROUNDS)
        say(f"{what}: " + ", ".join(f"{name} {1e3 * s:.1f} ms" for name, s in row["median"].items()))
        rows.append(row)
    rows.append({"what": "a step's memory, MNIST's update", "used": "reused"} | memory())
    measure.save("changes", rows)


if __name__ == "__main__":
    if sys.argv[1] == "reused":
        reuse_memory()
    update = on_noise("mnist", 128, examples=256).update
    for _ in sys.stdin:  # each line asks for so many
        for _ in range(UPDATES):
            update()
        print("done", flush=True)
