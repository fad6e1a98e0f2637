"""A run directory: which process holds it, which config it belongs to, and whether its run is done."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nin_jax import config as config_lib
from nin_jax import storage
from nin_jax.config import Config
from nin_jax.console import say
from nin_jax.errors import StorageFailed, UserError


@contextlib.contextmanager
def claim(workdir: Path, config: Config) -> Iterator[None]:
    """Holds the directory for this process and this config while entered.

    It belongs to the config of its run, and to none until a run in it has trained. Raises `UserError` if another
    process holds the directory, or if it belongs to another config.
    """
    try:
        with contextlib.ExitStack() as held:
            try:
                workdir.mkdir(parents=True, exist_ok=True)
                held.enter_context(storage.lock(workdir / ".lock", warn=say))
            except (FileExistsError, NotADirectoryError) as error:
                raise UserError(f"--workdir={workdir} is not a directory") from error
            except BlockingIOError as error:
                raise UserError(f"--workdir={workdir} is in use by a live process; choose another") from error
            path = workdir / "config.json"
            ours = config_lib.to_dict(config)
            if path.exists():
                theirs = config_lib.to_dict(config_lib.read(path))
                no_runs = not theirs.keys() <= ours.keys()  # it is another program's
                if begun(workdir) or no_runs:
                    check_config(theirs, config, f"--workdir={workdir}")
                elif theirs != ours:
                    (workdir / "preprocess.npz").unlink(
                        missing_ok=True
                    )  # it was fitted for that config, or to other data
            storage.write_json(path, ours)
            yield
    except OSError as error:
        raise StorageFailed(f"--workdir={workdir}: {error}") from error


def begun(workdir: Path) -> bool:
    """Whether a run in the directory has left results: a row, a checkpoint, a summary."""
    rows, checkpoints = workdir / "metrics.jsonl", workdir / "checkpoints"
    return (
        (workdir / "summary.json").exists()
        or (rows.exists() and rows.stat().st_size > 0)
        or (checkpoints.exists() and any(re.search("[0-9]", entry.name) for entry in checkpoints.iterdir()))
    )


def check_config(plain: dict[str, Any] | None, config: Config, what: str) -> None:
    """Raises `UserError` if `what` belongs to a run with another config."""
    if plain is not None:
        theirs = config_lib.to_dict(config_lib.from_dict(plain))
        differing = [
            line
            for line in config_lib.differences(theirs, config_lib.to_dict(config))
            if line.split(":")[0] not in config_lib.NOT_THE_RUN
        ]
        if differing:
            raise UserError(
                f"{what} holds a run of another config ({'; '.join(differing[:5])}); choose another --workdir, or remove it"
            )


def finished(workdir: Path, config: Config) -> dict[str, Any] | None:
    """The summary of a run that is done."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        summary = json.loads((workdir / "summary.json").read_text())
        if summary["status"] == "done" and summary["fingerprint"] == config_lib.fingerprint(config):
            return summary
    return None
