"""Memory on a CPU: each update works in the memory of the one before."""

from __future__ import annotations

import contextlib
import ctypes

import jax

# Options of glibc's mallopt(3), from malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8


def await_dispatches() -> None:
    """Makes a dispatch on a CPU return when all is computed. To be called before JAX looks for devices.

    Otherwise an update's results are there up to a millisecond before its temporary memory is free, so that the next one
    often takes as much again. Devices other than CPUs are not affected.
    """
    jax.config.update("jax_cpu_enable_async_dispatch", False)


def reuse_memory() -> None:
    """Keeps freed memory in this process, which stays as large as it has been at its largest.

    On a CPU, XLA allocates an update's temporary memory, a gigabyte for CIFAR-10, at every update and frees it after. glibc
    would give it back to the kernel and get it anew page by page, which takes as long as much of the update
    (docs/performance.md has it measured). With other C libraries than glibc nothing happens.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(M_ARENA_MAX, 1)  # one heap for all threads, since only the first can grow
        libc.mallopt(M_MMAP_MAX, 0)  # no allocation gets a mapping of its own, which would be unmapped when freed
        libc.mallopt(M_TRIM_THRESHOLD, -1)  # the end of the heap is not given back
        # Room for what is small, in pieces that do not grow together: else it would lie where an update's memory was, which
        # then no longer fits there. Pages that nobody writes to take no memory.
        libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
        libc.free.argtypes = [ctypes.c_void_p]
        for piece in [(libc.malloc(2**20), libc.malloc(64))[0] for _ in range(1024)]:
            libc.free(piece)
