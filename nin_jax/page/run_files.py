"""What run directories say of their runs, read from their files alone while they train: nothing is loaded or changed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

DEPTH = 3  # levels below a directory where runs are looked for: a sweep's lie one or two below it
MOST_RUNS = 500
QUIET_SECONDS = 120.0  # a run that trains has written something in this time, or in that of two epochs,
FIRST_SECONDS = 3600.0  # or, before its first epoch is over, in this time


def find(directories: Sequence[Path]) -> dict[str, tuple[str, Path]]:
    """The run directories in or below `directories`, by a key for addresses: each one's name and path, newest first.

    A run directory is one that holds config.json. The first `MOST_RUNS` are taken.
    """
    found = {}
    for root in directories:
        for path in _below(root, DEPTH):
            key = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:12]
            name = str(path.relative_to(root.parent if path == root else root))
            found.setdefault(key, (name, path))
            if len(found) == MOST_RUNS:
                break
    return dict(sorted(found.items(), key=lambda item: -_changed(item[1][1])))


def _below(path: Path, depth: int) -> Iterator[Path]:
    if (path / "config.json").is_file():
        yield path
    elif depth:
        try:
            entries = sorted(e.path for e in os.scandir(path) if e.is_dir(follow_symlinks=False) and e.name[0] != ".")
        except OSError:
            return
        for entry in entries:
            yield from _below(Path(entry), depth - 1)


def _changed(path: Path) -> float:
    """When a run last wrote, in seconds since the epoch."""
    times = [0.0]
    for name in ("metrics.jsonl", "summary.json", "config.json", "checkpoints"):
        with contextlib.suppress(OSError):
            times.append((path / name).stat().st_mtime)
    return max(times)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is none that can be read."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def rows(path: Path, since: str = "") -> tuple[list[dict[str, Any]], str, bool]:
    """The rows of metrics.jsonl after a mark.

    Args:
      path: the run directory.
      since: the mark that the last call returned; "" for all rows.

    Returns:
      the rows, the new mark, and whether they are all rows: a run that was resumed may have dropped some.
    """
    try:
        with open(path / "metrics.jsonl", "rb") as file:
            status = os.fstat(file.fileno())
            inode, _, offset = since.partition("-")
            known = offset if inode == str(status.st_ino) and re.fullmatch("[0-9]{1,18}", offset) else "0"
            known = int(known) if int(known) <= status.st_size else 0
            file.seek(known)
            lines = file.read().splitlines(keepends=True)
    except OSError:
        return [], "", True
    found, end = [], known
    for line in lines:
        if not line.endswith(b"\n"):
            break  # the rest of this line is still to come
        end += len(line)
        try:
            row = json.loads(line)
            found.append({k: v for k, v in row.items() if isinstance(v, (int, float, str))})
        except (ValueError, AttributeError, RecursionError):
            continue
    return found, f"{status.st_ino}-{end}", known == 0


def overview(key: str, name: str, path: Path) -> dict[str, Any]:
    """One line about a run: its state, epoch, last rates and errors, and the seconds that are left.

    "state" is "done" or "diverged" where summary.json says so, else "training" if the run wrote lately, else "stopped".
    """
    config, summary = read_json(path / "config.json"), read_json(path / "summary.json")
    last: dict[str, dict[str, Any]] = {}
    for row in rows(path)[0]:
        last[str(row.get("split"))] = row
    train = last.get("train", {})
    epochs, epoch = _number(config.get("epochs")), _number(train.get("epoch"))
    rate, step = _number(train.get("images_per_s")), _number(train.get("step"))
    an_epoch = step / epoch * _number(config.get("batch_size")) / rate if epoch and rate else 0.0
    if summary and _number(summary.get("step")) >= step:
        state = str(summary.get("status", "done"))
    else:
        quiet = max(QUIET_SECONDS, 2 * an_epoch) if epoch else FIRST_SECONDS
        state = "training" if time.time() - _changed(path) < quiet else "stopped"
    return {
        "key": key,
        "name": name,
        "state": state,
        "dataset": str(config.get("dataset", "")),
        "epoch": epoch,
        "epochs": epochs,
        "images_per_s": rate or None,
        "seconds_left": (epochs - epoch) * an_epoch if state == "training" and an_epoch else None,
        "params": summary.get("params"),
        "seed": config.get("seed"),
        "last": {
            split: {k: row.get(k) for k in ("epoch", "loss", "error_pct", "learning_rate")}
            for split, row in last.items()
        },
    }


def _number(value: Any) -> float:
    """A finite number, 0 for anything else that a file may hold."""
    with contextlib.suppress(OverflowError):
        return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else 0.0
    return 0.0


def flat_config(path: Path) -> dict[str, str]:
    """A run's config as key -> text, such as "optimizer.momentum" -> "0.9"."""
    found: dict[str, str] = {}

    def walk(section: dict[str, Any], prefix: str) -> None:
        for key, value in section.items():
            if isinstance(value, dict):
                walk(value, f"{prefix}{key}.")
            else:
                found[prefix + key] = json.dumps(value) if not isinstance(value, str) else value

    walk(read_json(path / "config.json"), "")
    return found
