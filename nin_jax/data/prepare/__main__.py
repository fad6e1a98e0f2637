"""Prepares MNIST, CIFAR-10, CIFAR-100, SVHN and ImageNet for `tfds.data_source`, without TensorFlow.

    python -m nin_jax.data.prepare cifar10                         # downloads the official archive
    python -m nin_jax.data.prepare cifar10 --archives=~/Downloads  # the archive is already there
    python -m nin_jax.data.prepare imagenet2012 --archives=~/ilsvrc2012 --short=256  # pack.py says what lies there

The result in `--data_dir` (default: TFDS's own rule) is what TFDS's own preparation would write, in ArrayRecord format,
but in the order of the official archive: the last 10,000 training images of CIFAR-10 are `data_batch_5`. Archives are
unpacked in memory, those of SVHN one after the other: svhn_cropped takes 2.8 GB, the others less than 1 GB.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags, logging

from nin_jax.console import exiting
from nin_jax.data.prepare.archives import DATASETS, IMAGENET, official
from nin_jax.data.prepare.prepare import prepare, prepare_imagenet
from nin_jax.data.worker import silence_size_warnings
from nin_jax.errors import Preempted, StorageFailed, UserError, nearest, one_line
from nin_jax.storage import expanded, local_path


def main(argv: Sequence[str]) -> None:
    """Prepares the data set that the one argument names."""
    logging.set_verbosity(logging.WARNING)  # `app.run` would let TFDS log every step
    silence_size_warnings()
    known = [*DATASETS, IMAGENET]
    match argv[1:]:
        case [name] if name in known:
            data_dir = _folder("data_dir", flags.FLAGS.data_dir)
            given = None if flags.FLAGS.archives is None else _folder("archives", flags.FLAGS.archives or ".")
            try:
                if name == IMAGENET:
                    prepare_imagenet(data_dir, given, flags.FLAGS.short, flags.FLAGS.processes)
                else:
                    prepare(official(name), data_dir, given)
            except KeyboardInterrupt as error:
                raise Preempted("interrupted: start the same command again, it continues with what it has") from error
            except MemoryError as error:
                raise UserError(f"not enough memory to prepare {name}: {error}") from error
            except OSError as error:
                raise StorageFailed(f"cannot prepare {name} in {data_dir}: {error}") from error
        case [name]:
            raise UserError(f"unknown dataset {name!r}: {nearest(name, known)}")
        case _:
            raise UserError(f"one dataset to prepare is expected (valid: {', '.join(sorted(known))})")


def _folder(flag: str, text: str) -> Path:
    try:
        return expanded(local_path(text))
    except ValueError as error:
        raise UserError(f"--{flag}={text}: {error}") from error


def run() -> None:
    """The entry point: any known ending is one line on stderr and its exit code."""
    default = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    flags.DEFINE_string("data_dir", default, "root of the prepared datasets, as in tfds.data_source")
    flags.DEFINE_string("archives", None, "folder with the official archives; default: download them")
    flags.DEFINE_integer(
        "short",
        0,
        "imagenet2012: scale pictures down to this short side, 256 for training; 0: as they are",
        lower_bound=0,
    )
    flags.DEFINE_integer("processes", os.cpu_count(), "imagenet2012: processes that pack at a time", lower_bound=1)
    with exiting():
        try:
            app.run(main, flags_parser=flags.FLAGS)
        except flags.Error as error:
            raise UserError(one_line(error)) from error


if __name__ == "__main__":
    run()
