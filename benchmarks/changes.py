"""Every change made for speed, before and after, side by side; and those that did not pay.

Sizes are those of CIFAR-10's network with 64 pictures. Unless a row says otherwise it times the operation and its gradients.
"""

from __future__ import annotations

import contextlib
import functools
import subprocess
import sys
import unittest.mock
from collections.abc import Callable
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
from nin_jax.devices.cpu_memory import await_dispatches, reuse_memory
from nin_jax.layers.cpu import patches, products, theorem, tuning
from nin_jax.layers.cpu.pieces import in_pieces
from nin_jax.layers.dropout import random_bits

ROUNDS = 5
UPDATES = 5  # a turn, of memory


def normal(*shape: int) -> jax.Array:
    """Numbers for an operation to work on."""
    return jnp.asarray(np.random.default_rng(len(shape)).standard_normal(shape, np.float32))


def gradients(f: Callable[..., jax.Array], *arguments: jax.Array) -> Callable[[], Any]:
    """Runs f and its gradients by all arguments."""
    y = jax.eval_shape(f, *arguments)
    cotangent = normal(*y.shape).astype(y.dtype)

    def both(cotangent: jax.Array, *arguments: jax.Array) -> Any:
        y, back = jax.vjp(f, *arguments)
        return y, back(cotangent)

    compiled = jax.jit(both).lower(cotangent, *arguments).compile()
    return lambda: jax.block_until_ready(compiled(cotangent, *arguments))


def convolutions(images: int, side: int, maps: int, features: int, size: int) -> dict[str, Callable[[], Any]]:
    """One convolution in every way there is."""
    x, kernel = normal(images, side, side, maps), normal(size, size, maps, features)
    ways: dict[str, Any] = {"XLA's convolution": by_xla, "patches": patches.convolve}
    if maps >= tuning.THEOREM_CHANNELS:
        ways["the convolution theorem"] = theorem.convolve
        ways["the theorem, XLA's FFT"] = by_fft
        ways["the theorem, rows and columns as real numbers"] = by_real_transforms
        groups = 3 if jax.__version_info__ >= (0, 12) else 1  # in place of one, or of three
        ways[f"the theorem, frequencies in groups: {groups}"] = functools.partial(theorem.convolve, groups=groups)
    return {name: gradients(lambda x, k, way=way: way(x, k, size // 2), x, kernel) for name, way in ways.items()}


def by_xla(x: jax.Array, kernel: jax.Array, pad: int) -> jax.Array:
    """XLA's own convolution, for a 1x1 kernel too."""
    dims = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (1, 1), ((pad, pad), (pad, pad)), dimension_numbers=dims)


def by_fft(x: jax.Array, kernel: jax.Array, pad: int) -> jax.Array:
    """The convolution theorem with XLA's Fourier transform and complex products."""
    size, height, width = kernel.shape[0], *x.shape[1:3]
    points = height + size - 1, width + size - 1
    pictures = jnp.fft.rfft2(x.transpose(3, 0, 1, 2), points)  # c b p q
    filters = jnp.fft.rfft2(kernel[::-1, ::-1].transpose(2, 3, 0, 1), points)  # c f p q
    products = jnp.einsum("cbpq,cfpq->bfpq", pictures, filters)
    y = jnp.fft.irfft2(products, points)[:, :, pad : pad + height, pad : pad + width]
    return y.transpose(0, 2, 3, 1)


def by_real_transforms(x: jax.Array, kernel: jax.Array, pad: int) -> jax.Array:
    """As `theorem.convolve`, with columns transformed as the rows are: nine products for four frequencies, not six."""
    rows, columns = (theorem.dft_matrices(n, kernel.shape[0], pad, complex_input=False) for n in x.shape[1:3])
    pictures = theorem.transform(rows[0], columns[0], x.transpose(1, 2, 0, 3))
    filters = theorem.transform(rows[1], columns[1], kernel)
    products = jnp.einsum("pqbc,pqcf->pqbf", pictures, filters)
    return theorem.transform(rows[2], columns[2], products).transpose(2, 0, 1, 3)


def bias() -> dict[str, Callable[[], Any]]:
    """The first convolution and its bias, of which no gradient by the picture is asked."""
    x, kernel, shift = normal(64, 32, 32, 3), normal(5, 5, 3, 192), normal(192)

    def added(kernel: jax.Array, shift: jax.Array) -> jax.Array:
        return products.add_bias(patches.convolve(x, kernel, 2), shift)

    def a_map(kernel: jax.Array, shift: jax.Array) -> jax.Array:
        return patches.convolve(x, kernel, 2, shift)

    ways = {"added": added, "the weight of a map of ones": a_map}
    return {name: gradients(way, kernel, shift) for name, way in ways.items()}


def pools() -> dict[str, Callable[[], Any]]:
    """The first pool's input."""

    def by_window(x: jax.Array) -> jax.Array:
        edges = ((0, 0), (0, 1), (0, 1), (0, 0))
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), edges)

    x = normal(64, 32, 32, 96)
    return {"XLA's window": gradients(by_window, x), "slices": gradients(lambda x: layers.max_pool(x), x)}


def pointwise() -> dict[str, Callable[[], Any]]:
    """The dearest 1x1 convolution."""
    x, kernel = normal(64, 32, 32, 192), normal(1, 1, 192, 160)

    def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return (x.reshape(-1, 192) @ kernel[0, 0]).reshape(*x.shape[:-1], 160)

    ways = {
        "XLA's convolution": lambda x, k: by_xla(x, k, 0),
        "one product": product,
        "one product, the kernel's gradient in halves": lambda x, k: products.matmul(x, k[0, 0]),
    }
    return {name: gradients(way, x, kernel) for name, way in ways.items()}


class Block(nn.Module):
    """An mlpconv and its pool in an evaluation."""

    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        rows = [layers.Layer(f"layer{i}", width, layers.gaussian("he")) for i, width in enumerate(self.widths)]
        return in_pieces(layers.MLPConv(rows, 5), layers.max_pool, x)[1]


def pieces(widths: tuple[int, ...], *shape: int) -> dict[str, Callable[[], Any]]:
    """A block and its pool in an evaluation; without gradients."""
    block, x = Block(widths), normal(*shape)
    variables = jax.jit(block.init)(jax.random.key(0), x[:1])

    def evaluation(whole: bool) -> Callable[[], Any]:
        # Whoever may write to a collection gets all images at once.
        f = jax.jit(functools.partial(block.apply, mutable=["none"] if whole else False)).lower(variables, x).compile()
        return lambda: jax.block_until_ready(f(variables, x))

    return {"all pictures at once": evaluation(True), "a few after the other": evaluation(False)}


def evaluations() -> dict[str, Callable[[], Any]]:
    """By batches as large as an update's, and by one."""
    sides = {
        f"{size:,} at a time": on_noise("cifar10", 128, examples=1024, eval_batch_size=size) for size in (128, 1024)
    }
    return {name: ours.evaluate for name, ours in sides.items()}


def low_precision() -> dict[str, Callable[[], Any]]:
    """The dearest 1x1 convolution in bfloat16, by XLA and by PyTorch, and in float32."""
    x, kernel = normal(64 * 32 * 32, 192), normal(192, 160)
    types = jnp.float32, jnp.bfloat16
    sides = {f"XLA, {jnp.dtype(t)}": gradients(jnp.matmul, x.astype(t), kernel.astype(t)) for t in types}
    theirs = [torch.from_numpy(np.array(a)).bfloat16().requires_grad_() for a in (x, kernel)]
    cotangent = torch.ones(x.shape[0], kernel.shape[1], dtype=torch.bfloat16)

    def product() -> None:
        torch.autograd.grad(theirs[0] @ theirs[1], theirs, cotangent)

    return sides | {"PyTorch, bfloat16": product}


def low_precision_pool() -> dict[str, Callable[[], Any]]:
    """The first pool with the ReLU before it and, as the next convolution has it, its output's axes in another order."""

    def pool(x: jax.Array) -> jax.Array:
        return layers.max_pool(jax.nn.relu(x)).astype(jnp.float32).transpose(1, 2, 0, 3)

    x = normal(64, 32, 32, 96).astype(jnp.bfloat16)
    with layers.portable(True):
        whole = gradients(pool, x)
    return {"in bfloat16": whole, "in float32": gradients(pool, x)}


def dropout() -> dict[str, Callable[[], Any]]:
    """The mask of the first pool's output, by example; without gradients."""
    key, x = jax.random.key(0), normal(64, 16, 16, 96)
    draw: dict[str, Callable[[jax.Array], Any]] = {
        "floats": lambda x: jnp.where(
            jax.vmap(lambda i: jax.random.bernoulli(jax.random.fold_in(key, i), 0.5, x.shape[1:]))(jnp.arange(64)),
            x,
            0.0,
        ),
        "numbers of 16 bits": lambda x: jnp.where(
            jax.vmap(lambda i: jax.random.bits(jax.random.fold_in(key, i), x.shape[1:], jnp.uint16))(jnp.arange(64))
            < 32768,
            x,
            0.0,
        ),
        "all bits of the generator": lambda x: jnp.where(random_bits(key, x.shape, None) < 32768, x, 0.0),
    }
    compiled = {name: jax.jit(f).lower(x).compile() for name, f in draw.items()}
    return {name: lambda f=f: jax.block_until_ready(f(x)) for name, f in compiled.items()}


def memory() -> dict[str, Any]:
    """A whole update of MNIST's network in two processes that take turns, with `reuse_memory` and without."""
    with contextlib.ExitStack() as stack:

        def side(name: str) -> Callable[[], Any]:
            command = [sys.executable, "-m", "benchmarks.changes", name]
            child = stack.enter_context(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            asked, told = child.stdin, child.stdout
            assert asked is not None
            assert told is not None

            def updates() -> None:
                print(file=asked, flush=True)
                if not told.readline():
                    raise AssertionError(f"{command} ended with {child.wait()}")

            return updates

        return measure.alternate({name: side(name) for name in ("given back", "reused")}, ROUNDS, UPDATES)


def dispatches() -> dict[str, Callable[[], Any]]:
    """Four updates of a small network, in one dispatch and in four."""
    one = on_noise("digits", 64, examples=256)
    with unittest.mock.patch("benchmarks.runs.steps_per_dispatch", lambda steps: steps):
        four = on_noise("digits", 64, examples=256)
    return {"one a dispatch (four updates)": lambda: one.update(4), "four a dispatch (four updates)": four.update}


def main() -> None:
    """All of them. The first side of each is before, the one that is used is after."""
    cases: list[tuple[str, str, Callable[[], dict[str, Callable[[], Any]]]]] = [
        (
            "1x1 convolution, 192 to 160 maps of 32x32",
            "one product, the kernel's gradient in halves",
            pointwise,
        ),
        ("5x5 convolution, 3 to 192 maps of 32x32", "patches", lambda: convolutions(64, 32, 3, 192, 5)),
        (
            "5x5 convolution, 96 to 192 maps of 16x16",
            "the convolution theorem",
            lambda: convolutions(64, 16, 96, 192, 5),
        ),
        (
            "3x3 convolution, 192 to 192 maps of 8x8",
            "the convolution theorem",
            lambda: convolutions(64, 8, 192, 192, 3),
        ),
        ("bias of a 5x5 convolution, 3 to 192 maps of 32x32", "the weight of a map of ones", bias),
        ("3x3 max pool, 96 maps of 32x32", "slices", pools),
        (
            "an evaluation's first block, 128 pictures",
            "a few after the other",
            lambda: pieces((192, 160, 96), 128, 32, 32, 3),
        ),
        (
            "an evaluation's second block, 1,024 pictures",
            "a few after the other",
            lambda: pieces((192, 192, 192), 1024, 16, 16, 96),
        ),
        ("an evaluation of CIFAR-10's network, 1,024 pictures", "1,024 at a time", evaluations),
        ("3x3 max pool of bfloat16, 96 maps of 32x32, and what is around it", "in float32", low_precision_pool),
        ("1x1 convolution in bfloat16, 192 to 160 maps of 32x32", "XLA, bfloat16", low_precision),
        ("dropout's mask, 96 maps of 16x16", "all bits of the generator", dropout),
        ("several updates a dispatch, the digits' network", "one a dispatch (four updates)", dispatches),
    ]
    rows = []
    for what, used, make in cases:
        row: dict[str, Any] = {"what": what, "used": used} | measure.alternate(make(), ROUNDS)
        say(f"{what}: " + ", ".join(f"{name} {1e3 * s:.1f} ms" for name, s in row["median"].items()))
        rows.append(row)
    rows.append({"what": "a step's memory, MNIST's update", "used": "reused"} | memory())
    measure.save("changes", rows)


if __name__ == "__main__":
    if sys.argv[1] == "reused":
        await_dispatches()
        reuse_memory()
    update = on_noise("mnist", 128, examples=256).update
    for _ in sys.stdin:  # each line asks for so many
        for _ in range(UPDATES):
            update()
        print("done", flush=True)
