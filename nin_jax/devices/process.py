"""What a command changes for its whole process. Commands alone call it: a notebook that imports nin_jax keeps its own."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import jax

from nin_jax.devices import cpu_memory, processes
from nin_jax.devices.mesh import backend


def prepare_process(cache: Path) -> None:
    """Sets up logs, hooks, JAX, the other processes of the run and the allocator, in this necessary order.

    Args:
      cache: folder for compiled programs, unless JAX_COMPILATION_CACHE_DIR names another.
    """
    # Orbax logs every file and every failure with its stack, and so does asyncio for orbax; what matters is raised.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    sys.unraisablehook = _without_closed_loops
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache))
        if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)  # JAX's default is a second
    cpu_memory.await_dispatches()
    processes.join()
    if backend() == "cpu":  # on the hosts of accelerators, decoding threads would contend for the one heap
        cpu_memory.reuse_memory()


def _without_closed_loops(info: Any) -> None:
    """`sys.unraisablehook` without what a failed save or restore leaves behind.

    When one array cannot be read or written, orbax closes its event loop while the others are still in it, and each of
    them complains on stderr when it returns, possibly at the very end.
    """
    if "Event loop is closed" not in str(info.exc_value):
        sys.__unraisablehook__(info)
