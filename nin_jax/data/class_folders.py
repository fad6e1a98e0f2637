"""Finds the pictures of a user's folder: which folders are splits, which are classes, and what is left out.

    ROOT/cat/1.jpg, ROOT/dog/2.png, ...                     class folders
    ROOT/train/cat/..., ROOT/val/cat/..., ROOT/test/cat/... class folders in split folders, see `SPLITS`

Links are followed. Whatever is ambiguous raises `UserError`; nothing is guessed.
"""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from nin_jax.data.pictures import LIKE_PICTURES, SUFFIXES, starts_like_a_picture
from nin_jax.errors import UserError

SPLITS = {  # the name of a split folder, in any case
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
LIKE_SPLITS = re.compile(  # a word in the name of a folder that may be one: the first group is of training
    "(?:(train|training)|val|valid|validation|test|testing|dev|eval|evaluation|holdout)(?:set|data|images?|dir)?"
)
HELD_OUT = 5  # every fifth picture of a class is in the test split, where there are no split folders

# What operating systems, network storage and editors leave behind, in lower case. Hidden files are left out anyway.
LITTER = {
    *("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "folder.ico", "icon\r", "__macosx"),
    *("$recycle.bin", "recycler", "system volume information", "lost+found", "temporary items"),
    *("network trash folder", "@eadir", "@tmp", "@recycle", "@recently-snapshot", "#recycle", "#snapshot"),
    *("@sharebin", "@__thumb", "~snapshot", "found.000", "thevolumesettingsfolder", "lightroom_catalog", "__pycache__"),
}
TEXT = {".txt", ".json", ".xml", ".csv", ".tsv", ".yaml", ".yml", ".md", ".html"}  # beside pictures: labels and remarks

Entry = tuple[Path, int]  # a picture, which may be a link that leads nowhere, and its label


class Found(NamedTuple):
    """What is in a folder of pictures.

    Attributes:
      classes: names of the class folders, sorted; a label is an index in them.
      splits: the pictures of each split, in their order.
      left_out: number of files or folders that are not used, by reason.
    """

    classes: tuple[str, ...]
    splits: dict[str, list[Entry]]
    left_out: Counter[str]


def find(root: Path) -> Found:
    """The pictures of a folder. Raises `UserError`.

    The order depends on the pictures' names below `root` alone: it is shuffled by a hash, and every stretch of a split has its
    share of every class. Their content does not count: it would have to be read before a run can begin, and a picture that is
    edited or compressed again would move from the training split to the test split.
    """
    left_out: Counter[str] = Counter()
    tops = _tops(root)
    for top in dict.fromkeys((root, *tops.values())):
        _count_loose(top, left_out)
    folders = {split: _folders(top) for split, top in tops.items()}
    classes = sorted({name for of_split in folders.values() for name in of_split})
    _check_classes(root, folders, classes)
    taken = {_identity(path) for path in (*root.resolve().parents, root, *tops.values())}
    taken |= {_identity(path) for of_split in folders.values() for path in of_split.values()}
    splits: dict[str, list[Entry]] = {}
    others = {name.casefold() for name in classes}
    for split, of_split in folders.items():
        splits[split] = []
        for label, name in enumerate(classes):
            if name in of_split:
                found = list(_pictures(of_split[name], taken.copy(), left_out, others - {name.casefold()}))
                if not found:
                    raise UserError(
                        f"class folder {of_split[name]} holds no picture that can be read (left out: {describe(left_out)})"
                    )
                splits[split] += [(file, label) for file in found]
    if tops.keys() == {"all"}:
        splits = hold_out(splits["all"], root)
    return Found(tuple(classes), {name: _mixed(entries, root) for name, entries in splits.items()}, left_out)


def describe(left_out: Counter[str]) -> str:
    """Numbers and reasons, as "3 .heic (not decoded here), 1 in no class folder"; "nothing" for none."""
    return ", ".join(f"{number} {reason}" for reason, number in sorted(left_out.items())) or "nothing"


def split_expression(text: str) -> str:
    """A split expression with the splits' own names: "validation[:50%]" for "val[:50%]"."""
    parts = [part.partition("[") for part in text.split("+")]
    return "+".join(SPLITS.get(name.strip().casefold(), name) + bracket + rest for name, bracket, rest in parts)


def _tops(root: Path) -> dict[str, Path]:
    """The folder of each split, or {"all": root} for a folder of class folders."""
    folders = _folders(root)
    splits = [path for name, path in folders.items() if name.casefold() in SPLITS]
    if not splits:
        inside = {name: _folders(path, strict=False) for name, path in folders.items()}
        for name, subs in inside.items():
            path, called = folders[name], [sub for sub in subs if sub.casefold() in SPLITS]
            if called and len(folders) == 1:
                raise UserError(f"data_dir={root}: the splits lie one folder deeper; set --config.data_dir={path}")
            if called:
                raise UserError(
                    f"{path / called[0]}: a split within the class {name!r}; put the classes into the splits, as "
                    f"{root / called[0] / name}"
                )
        _check_looks(root, inside)
        return {"all": root}
    others = [path.name for name, path in folders.items() if name.casefold() not in SPLITS]
    if others:
        raise UserError(
            f"data_dir={root}: {', '.join(p.name for p in splits)} would be splits, but {', '.join(others)} beside them would "
            "not; if they are all classes, rename what is called like a split, else move the others away"
        )
    tops: dict[str, Path] = {}
    for path in splits:
        split = SPLITS[path.name.casefold()]
        if split in tops:
            raise UserError(f"data_dir={root}: both {tops[split].name} and {path.name} would be the split {split!r}")
        tops[split] = path
        inside = _folders(path)
        if all(name.casefold() in SPLITS for name in inside):
            held = f"the folders {', '.join(inside)}" if inside else "no class folders"
            raise UserError(
                f"data_dir={root}: {path.name} would be a split, but holds {held}; if it is a class, rename it, such as "
                f"{path.name}_"
            )
    return {split: tops[split] for split in SPLITS.values() if split in tops}


def _check_looks(root: Path, inside: dict[str, dict[str, Path]]) -> None:
    """Raises `UserError` where two classes, by name and the folders inside, are rather splits: training_set and test_set."""
    like: dict[str, str] = {}
    for name, folders in inside.items():
        words = re.split("[^a-z]+", name.casefold())
        if found := [match for match in map(LIKE_SPLITS.fullmatch, words) if match and folders]:
            like.setdefault("train" if found[0][1] else "test", name)
    if len(like) == 2:
        raise UserError(
            f"data_dir={root}: {like['train']} and {like['test']} would be classes, but look like splits; rename them to train and "
            "to test or val"
        )


def _count_loose(top: Path, left_out: Counter[str]) -> None:
    """Counts the pictures beside folders."""
    for entry in _entries(top):
        if not _is_folder(entry) and _kind(Path(entry.path)):
            left_out["in no class folder"] += 1


def _check_classes(root: Path, folders: dict[str, dict[str, Path]], classes: Sequence[str]) -> None:
    if len(classes) < 2:
        raise UserError(f"data_dir={root}: {len(classes)} class folders found, at least 2 are needed")
    alike: dict[str, str] = {}
    for name in classes:
        other = alike.setdefault(name.casefold(), name)
        if other != name:
            raise UserError(f"data_dir={root}: the classes {other!r} and {name!r} differ in capitals alone; rename one")
    for split, of_split in folders.items():
        places = {} if split == "train" else {_identity(path): path for path in folders.get("train", {}).values()}
        for path in of_split.values():
            other = places.setdefault(_identity(path), path)
            if other != path:
                raise UserError(f"data_dir={root}: {other} and {path} are one folder, by a link")
        unknown = sorted(of_split.keys() - folders.get("train", of_split).keys())
        if unknown:
            raise UserError(
                f"data_dir={root}: the split {split!r} has classes that are not in train: {', '.join(unknown)}"
            )


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What is in a folder, by name, without litter. Raises `UserError` if it cannot be read."""
    try:
        with os.scandir(folder) as found:
            kept = [e for e in found if not e.name.startswith(".") and e.name.casefold() not in LITTER]
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror}") from error
    return sorted(kept, key=lambda entry: (_normal(entry.name), entry.name))


def _folders(top: Path, *, strict: bool = True) -> dict[str, Path]:
    """The folders in a folder by name. With `strict`, a broken link that may be a folder raises `UserError`."""
    found: dict[str, Path] = {}
    for entry in _entries(top):
        path = Path(entry.path)
        if _is_folder(entry):
            if _normal(entry.name) in found:
                raise UserError(f"{path}: another folder of the same name differs in its Unicode form alone")
            found[_normal(entry.name)] = path
        elif strict and not path.suffix and _leads_nowhere(path):
            raise UserError(f"{path} is a link to {os.readlink(path)}, which is not there")
    return found


def _pictures(
    folder: Path, taken: set[tuple[int, int]], left_out: Counter[str], others: Collection[str] = ()
) -> Iterator[Path]:
    """The pictures of a class, however deep. Folders of `taken` are skipped, and none is visited twice.

    Raises `UserError` for a folder directly inside that has the name of one of the `others`: its pictures may be of either class.
    """
    for entry in _entries(folder):
        path = Path(entry.path)
        if _is_folder(entry):
            if _normal(entry.name).casefold() in others:
                raise UserError(
                    f"{path}: called like a class, inside the class {folder.name!r}; if that is another copy of the classes, or "
                    "holds several of them, move it away"
                )
            if (identity := _identity(path)) in taken:
                left_out["linked folders that are read already"] += 1
            else:
                taken.add(identity)
                yield from _pictures(path, taken, left_out)
        elif (kind := _kind(path)) == "picture":
            yield path
        elif kind:
            left_out[kind] += 1


def _kind(path: Path) -> str:
    """ "picture"; or why a file that looks like one is left out; or "" for any other file."""
    suffix = path.suffix.lower()
    if _leads_nowhere(path):
        return "" if suffix in TEXT else "picture"  # it may have been a picture, or a folder of them
    if not path.is_file():
        return ""
    if suffix in SUFFIXES:
        return "picture"
    if suffix in LIKE_PICTURES:
        return f"{suffix} (not decoded here)"
    if suffix not in TEXT and starts_like_a_picture(path):
        return f"named {'*' + suffix if suffix else 'without an ending'} (pictures by their content)"
    return ""


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _leads_nowhere(path: Path) -> bool:
    return path.is_symlink() and not os.path.exists(path)


def _identity(path: Path) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def _normal(name: str) -> str:
    """A name as Linux and Windows write it; macOS decomposes accented letters."""
    return unicodedata.normalize("NFC", name)


def _hash(file: Path, root: Path) -> str:
    """A hash of a name, read as UTF-8 in every locale."""
    name = os.fsencode(file.relative_to(root).as_posix()).decode(errors="surrogateescape")
    return hashlib.sha256(_normal(name).encode(errors="surrogateescape")).hexdigest()


def _by_class(entries: Sequence[Entry], root: Path) -> list[list[Entry]]:
    """The pictures of each class, in the order of a hash of their names."""
    classes: dict[int, list[Entry]] = {}
    for entry in entries:
        classes.setdefault(entry[1], []).append(entry)
    return [sorted(classes[label], key=lambda entry: _hash(entry[0], root)) for label in sorted(classes)]


def hold_out(entries: Sequence[Entry], root: Path) -> dict[str, list[Entry]]:
    """Splits one list. Which pictures are held out depends on their names alone, class by class."""
    splits: dict[str, list[Entry]] = {"train": [], "test": []}
    for of_class in _by_class(entries, root):
        every = max(2, min(HELD_OUT, len(of_class)))  # a class with fewer than five still has one to test
        for i, entry in enumerate(of_class):
            splits["test" if i % every == every - 1 else "train"].append(entry)
    return splits


def _mixed(entries: Sequence[Entry], root: Path) -> list[Entry]:
    """A fixed order in which each class is spread evenly, and shuffled by a hash of the names."""
    placed = [
        ((i + 0.5) / len(of_class), _hash(entry[0], root), entry)
        for of_class in _by_class(entries, root)
        for i, entry in enumerate(of_class)
    ]
    return [entry for *_, entry in sorted(placed, key=lambda item: item[:2])]
