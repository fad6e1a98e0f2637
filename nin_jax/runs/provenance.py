"""Which versions and which commit a number comes from."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import platform
import subprocess
from pathlib import Path

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "ml-collections", "numpy")


def versions() -> dict[str, str]:
    """Versions of Python and of what the numbers of a run depend on."""
    found = {"python": platform.python_version(), "nin_jax": importlib.import_module("nin_jax").__version__}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def commit() -> str | None:
    """The commit of the checkout that this package runs from, with "+" if files differ from it; None without one."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        # An installed package may lie inside the checkout of something else.
        subprocess.run([*git, "ls-files", "--error-unmatch", Path(__file__).name], capture_output=True, check=True)
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run(
            [*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+" if changed else "")
