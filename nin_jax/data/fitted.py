"""Chains of preprocess entries: fitted once on the training images, applied to every batch on the device."""

from __future__ import annotations

import functools
import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nin_jax import storage
from nin_jax.console import say
from nin_jax.errors import UserError, one_line
from nin_jax.registry import Call, FittedOp, RandomOp

Stats = list[dict[str, Any]]

CHUNK = 1024  # images transformed at once while fitting, so that memory is that of the result


def fit(ops: Sequence[Call[FittedOp]], images: np.ndarray) -> Stats:
    """Fits each op on the training images uint8 `[N, H, W, C]` as the ops before it transform them."""
    stats: Stats = []
    fitted = [i for i, op in enumerate(ops) if not op.entry.PER_IMAGE]
    current = np.asarray(images)
    for i, op in enumerate(ops):
        try:
            stats.append(op.entry.fit(current, **op.arguments))
            for name, array in stats[-1].items():
                if not np.isfinite(np.asarray(array)).all():
                    raise ValueError(f"what was fitted has {name} that is not finite")
            if fitted and i < fitted[-1]:
                step = jax.jit(functools.partial(op.entry.apply, **op.arguments))
                chunks = [
                    step(stats[i], jnp.asarray(current[k : k + CHUNK], jnp.float32))
                    for k in range(0, len(current), CHUNK)
                ]
                current = np.concatenate([np.asarray(c) for c in chunks])
        except (TypeError, ValueError, np.linalg.LinAlgError) as error:
            raise UserError(f"{op.source!r}: {error}") from error
    return stats


def apply(ops: Sequence[Call[FittedOp]], stats: Stats, images: jax.Array) -> jax.Array:
    """uint8 `[B, H, W, C]` to preprocessed float32 `[B, H, W, C]`."""
    x = images.astype(jnp.float32)
    for op, fitted in zip(ops, stats, strict=True):
        x = op.entry.apply(fitted, x, **op.arguments)
    return x


def augment(ops: Sequence[Call[RandomOp]], keys: jax.Array, images: jax.Array) -> jax.Array:
    """Applies random ops to float32 `[B, H, W, C]`.

    Image i's random numbers depend on `keys[i]` and the op's position.
    """
    for i, op in enumerate(ops):
        images = op.entry.apply(jax.vmap(lambda k, i=i: jax.random.fold_in(k, i))(keys), images, **op.arguments)
    return images


def write_stats(path: Path, key: str, stats: Stats) -> None:
    arrays = {f"{i}/{name}": array for i, one in enumerate(stats) for name, array in one.items()}
    content = io.BytesIO()
    np.savez(content, key=np.array(key), **arrays)
    storage.write_whole(path, content.getvalue())


def read_stats(path: Path, key: str, ops: int) -> Stats | None:
    """The stats in the file, whose members zip verifies by CRC-32; None if they are of another config, or broken."""
    try:
        with zipfile.ZipFile(path) as members:  # else a small file could unpack to gigabytes
            if any(member.compress_type != zipfile.ZIP_STORED for member in members.infolist()):
                raise ValueError("it is compressed")
        with np.load(path, allow_pickle=False) as file:
            if str(file["key"]) != key:
                return None
            stats: Stats = [{} for _ in range(ops)]
            for name in set(file.files) - {"key"}:
                i, part = name.split("/")
                stats[int(i)][part] = file[name]
            return stats
    except (OSError, ValueError, LookupError, RuntimeError, zipfile.BadZipFile, EOFError) as error:
        say(f"{path} is broken ({one_line(error)}): fitting the preprocessing again")
        return None
