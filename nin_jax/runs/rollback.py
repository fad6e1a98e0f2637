"""A run that diverged returns to its newest good checkpoint and continues with a lower learning rate.

Each rollback is an entry of rollbacks.json in the run directory: {"update": where it diverged, "to": the step it
returned to, "factor": of the learning rate from there on, "why"}. A start that resumes reads the factor from it.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from nin_jax import storage
from nin_jax.config import Config
from nin_jax.console import say
from nin_jax.devices import processes
from nin_jax.errors import Diverged, UserError
from nin_jax.runs.checkpoint import Checkpoints

FILE = "rollbacks.json"


def read(workdir: Path) -> list[dict[str, Any]]:
    """The rollbacks of a run so far. Raises `UserError` if the file is not one that this module wrote."""
    path = workdir / FILE
    try:
        entries = json.loads(path.read_text())
        if not all(0 < entry["factor"] <= 1 and entry["to"] >= 0 for entry in entries):
            raise ValueError("a factor must be above 0 and at most 1")
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error!r}); choose another --workdir") from error
    return entries


def factor(rollbacks: list[dict[str, Any]]) -> float:
    """The factor of the learning rate."""
    return math.prod(entry["factor"] for entry in rollbacks)


def go_back(config: Config, workdir: Path, diverged: Diverged) -> None:
    """Deletes checkpoints of the divergence and records the rollback; raises `diverged` again if no rollback is left.

    If it is killed in between, the run diverges once more and gets here again.
    """
    rollbacks = processes.from_first(lambda: read(workdir))
    if len(rollbacks) >= config.rollbacks:
        raise diverged
    checkpoints = Checkpoints(workdir, config.keep)
    try:
        to = checkpoints.drop_while(lambda notes: not notes.get("healthy", True))
    finally:
        checkpoints.close()
    rollbacks.append({"update": diverged.update, "to": to, "factor": config.rollback_factor, "why": str(diverged)})
    processes.from_first(lambda: storage.write_json(workdir / FILE, rollbacks))
    say(
        f"{diverged}; rollback {len(rollbacks)} of {config.rollbacks}: back to step {to}, with "
        f"{factor(rollbacks):g} times the learning rate"
    )
