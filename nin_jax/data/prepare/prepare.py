"""Preparing data sets for `tfds.data_source`: archives found or downloaded, verified, and written in TFDS's layout."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import shlex
import shutil
import ssl
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from nin_jax import storage
from nin_jax.console import say, transfer
from nin_jax.data.prepare.archives import IMAGENET, Archive, Dataset, Splits, read
from nin_jax.data.tfds import is_whole, shards
from nin_jax.errors import UserError

NETWORK_ERRORS = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError)


def prepare(dataset: Dataset, data_dir: Path, given: Path | None = None) -> None:
    """Writes `data_dir`/NAME/VERSION for stock `tfds.data_source`, unless it is there already.

    TFDS writes to a temporary directory and renames it at the end, so a result is always complete.

    Args:
        dataset: what to prepare, from `official`.
        data_dir: root of the TFDS datasets, created if need be.
        given: the folder of the archives, which is only read; None downloads them to `data_dir`/downloads/NAME.

    Raises:
        UserError: an archive is missing, cannot be downloaded or is not the official one; `data_dir` is not writable,
            in use by another preparation, or holds something else in that place.
    """
    import tensorflow_datasets as tfds

    stock: Any = tfds.builder_cls(dataset.name)(data_dir=data_dir)
    target = Path(stock.data_dir)
    if target.exists():
        # TFDS would silently take whatever lies there for the dataset.
        if not stock.is_prepared() or stock.info.file_format.value != "array_record":
            raise UserError(f"{target} exists but is no ArrayRecord dataset: remove it or give another --data_dir")
        if not _broken(dataset.name, target):
            return
    with _exclusive(dataset.name, data_dir) as downloads:
        for leftover in target.parent.glob(f"incomplete.*_{target.name}"):  # of a killed preparation
            shutil.rmtree(leftover)
        splits, class_names = read(dataset, archives_of(dataset, data_dir, given, downloads))
        if target.exists():
            shutil.rmtree(target)
        _write(dataset, data_dir, splits, class_names)


def _broken(name: str, target: Path) -> list[Path]:
    """The files of a prepared data set that are not there whole, by the question that training asks; says what it is."""
    broken = [path for path, records in shards(name, target).items() if not is_whole(path, records)]
    if broken:
        say(
            f"{target} lacks {len(broken)} files or has parts of them alone, such as {broken[0].name}: preparing it again"
        )
    else:
        print(f"{name} is already prepared in {target}")
    return broken


def prepare_imagenet(data_dir: Path, given: Path | None, short: int, processes: int) -> None:
    """Write `data_dir`/imagenet2012/5.1.0 from the archives or class folders in `given`; see `pack`. Raises `UserError`."""
    from nin_jax.data.prepare import pack

    target = data_dir / pack.NAME / pack.VERSION
    broken = _broken(IMAGENET, target) if target.exists() else []
    if target.exists() and not broken:
        return
    if given is None or not given.is_dir():
        raise UserError(
            f"--archives={given}: name the folder with {' and '.join(pack.TARS.values())}, from "
            "https://image-net.org/download-images (they need an account there), or with the folders train and val"
        )
    with _exclusive(IMAGENET, data_dir):
        if broken:
            for path in broken:
                path.unlink(missing_ok=True)
            target.rename(pack.unfinished(target))
        pack.pack(given, target, short, processes)


@contextlib.contextmanager
def _exclusive(name: str, data_dir: Path) -> Iterator[Path]:
    """Creates and locks the folder for downloads: two preparations would delete each other's unfinished files."""
    downloads = data_dir / "downloads" / name
    with contextlib.ExitStack() as held:
        try:
            downloads.mkdir(parents=True, exist_ok=True)
            held.enter_context(storage.lock(downloads / "lock"))
        except BlockingIOError as error:
            raise UserError(f"--data_dir={data_dir}: another process is preparing {name} there") from error
        except OSError as error:
            raise UserError(f"--data_dir={data_dir} is not writable: {error}") from error
        yield downloads


def archives_of(dataset: Dataset, data_dir: Path, given: Path | None, downloads: Path) -> Path:
    """The folder where all archives lie, verified: `given`, or `downloads` after what it lacked was downloaded."""
    if given and not given.is_dir():
        raise UserError(f"--archives={given} is not a folder")
    folder = given or downloads
    for archive in dataset.archives:
        if (folder / archive.file).is_file():
            _verify(folder / archive.file, archive)
        elif given:
            raise UserError(f"--archives={given} lacks {archive.file} (official: {archive.url})")
        else:
            try:
                _download(archive, downloads)
            except NETWORK_ERRORS as error:
                missing = " ".join(a.url for a in dataset.archives if not (downloads / a.file).is_file())
                command = f"python -m nin_jax.data.prepare {dataset.name} " + shlex.join(
                    [f"--archives={downloads}", f"--data_dir={data_dir}"]
                )
                raise UserError(
                    f"cannot download {archive.url} ({error}): fetch {missing} into {downloads} by other means, "
                    f"then run: {command}"
                ) from error
    return folder


def _verify(path: Path, archive: Archive) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != archive.sha256:
        raise UserError(f"{path}: SHA-256 is {found}, expected {archive.sha256}: replace it with {archive.url}")


def _download(archive: Archive, folder: Path) -> None:
    """Downloads `folder`/FILE as FILE.part, which a later attempt or call continues."""
    part = folder / f"{archive.file}.part"
    with transfer(archive.size, archive.file) as show:
        storage.retry(lambda: _append(archive, part, show), lambda error: isinstance(error, NETWORK_ERRORS))
    try:
        _verify(part, archive)
    except UserError:
        part.unlink()  # no later attempt can complete it
        raise
    part.replace(folder / archive.file)


def _append(archive: Archive, part: Path, show: Callable[[int], None]) -> None:
    """One attempt to complete `part`, up to `archive.size`; shows its size after each chunk."""
    size = part.stat().st_size if part.exists() else 0
    if size < archive.size:
        request = urllib.request.Request(archive.url, headers={"Range": f"bytes={size}-"})  # noqa: S310 - a URL of the table
        with (
            urllib.request.urlopen(request, timeout=30) as response,  # noqa: S310 - as above
            # A server that ignores Range answers 200 and begins again, so do we.
            part.open("ab" if response.status == 206 else "wb") as file,
        ):
            size = file.tell()
            while size < archive.size and (chunk := response.read(min(1 << 18, archive.size - size))):
                file.write(chunk)
                size += len(chunk)
                show(size)
    if size < archive.size:
        raise ConnectionError(f"the connection ended after {size} of {archive.size} bytes")


def _write(dataset: Dataset, data_dir: Path, splits: Splits, class_names: Mapping[str, list[str]]) -> None:
    """Lets TFDS's own builder write the data set from `splits`, in their order."""
    import tensorflow_datasets as tfds
    from PIL import Image
    from tensorflow_datasets.core import shuffle

    stock: Any = tfds.builder_cls(dataset.name)

    # TFDS takes skip_registration, but pyright loses it among the other base classes.
    class Builder(stock, skip_registration=True):  # pyright: ignore[reportGeneralTypeIssues, reportCallIssue]
        name = stock.name
        __module__ = stock.__module__  # TFDS writes it to dataset_info.json and looks for metadata beside it

        def _info(self) -> tfds.core.DatasetInfo:
            info = super()._info()
            info.as_proto.disable_shuffling = True
            for label, names in class_names.items():
                info.features[label].names = names
            return info

        def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
            return {split: self._generate_examples(split) for split in splits}

        def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
            rows = (row for images, labels in splits[split] for row in zip(images, labels, strict=True))
            for index, (image, labels) in enumerate(rows):
                # TFDS encodes arrays with TensorFlow, but Pillow images with Pillow (to PNG).
                example = {"image": Image.fromarray(image), **dict(zip(dataset.labels, map(int, labels), strict=True))}
                if "id" in self.info.features:
                    example["id"] = f"{split}_{index:0{dataset.id_digits}d}"
                yield index, example

    # With more bytes than this in a split TFDS would sort it on disk, by TensorFlow. SVHN's `extra` comes close.
    limit, shuffle.MAX_MEM_BUFFER_SIZE = shuffle.MAX_MEM_BUFFER_SIZE, sys.maxsize
    try:
        Builder(data_dir=data_dir).download_and_prepare(file_format="array_record")
    finally:
        shuffle.MAX_MEM_BUFFER_SIZE = limit
