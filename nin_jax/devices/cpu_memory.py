"""Memory on a CPU: each update reuses the memory of the one before."""

from __future__ import annotations

import contextlib
import ctypes

import jax

# Options of glibc's mallopt(3), from malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8


def await_dispatches() -> None:
    """Makes a dispatch on a CPU return when all is computed. Call it before JAX looks for devices.

    Otherwise an update's results are ready up to a millisecond before its temporary memory is free, so the next update
    often takes as much again. Other devices are not affected.
    """
    jax.config.update("jax_cpu_enable_async_dispatch", False)


def reuse_memory() -> None:
    """Keeps freed memory in this process, which so stays as large as it ever was.

    On a CPU, XLA allocates an update's temporary memory, a gigabyte for CIFAR-10, at every update and frees it
    afterwards. glibc would return it to the kernel and fetch it again page by page, which costs a large part of the
    update's time (see docs/performance.md). With C libraries other than glibc nothing happens.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(M_ARENA_MAX, 1)  # one heap for all threads, since only the first can grow
        libc.mallopt(M_MMAP_MAX, 0)  # no allocation gets a mapping of its own, which would be unmapped when freed
        libc.mallopt(M_TRIM_THRESHOLD, -1)  # the end of the heap is not given back
        # Room for small allocations, in pieces that do not grow together: otherwise they would take the place of an
        # update's memory, which then no longer fits. Pages that nobody writes to take no memory.
        libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
        libc.free.argtypes = [ctypes.c_void_p]
        for piece in [(libc.malloc(2**20), libc.malloc(64))[0] for _ in range(1024)]:
            libc.free(piece)
