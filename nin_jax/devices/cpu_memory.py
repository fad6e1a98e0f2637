"""The memory allocator, as training on a CPU needs it."""

from __future__ import annotations

import contextlib
import ctypes

import jax


def reuse_memory() -> None:
    """Lets every step on a CPU work in the memory of the step before. To be called before jax starts.

    On a CPU, XLA asks for a step's temporary memory, a gigabyte for CIFAR-10, at every step and frees it after. glibc
    would give it back to the kernel and get it anew page by page, which takes as long as much of the step
    (docs/performance.md has it measured): where the C library is glibc, it now stays with the process, which is as large
    as it has been at its largest. And a step's results were there up to a millisecond before its memory was free, so
    that the next one often took as much again: now a dispatch returns when all is done.
    """
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(-8, 1)  # M_ARENA_MAX: one heap for all threads, since only the first can grow
        libc.mallopt(-4, 0)  # M_MMAP_MAX: nothing is mapped by itself, to be unmapped when it is freed
        libc.mallopt(-1, -1)  # M_TRIM_THRESHOLD: the heap's end is not given back
        # Room for what is small, in pieces that do not grow together: else it would lie where a step's memory was, which
        # then no longer fits there. Pages that nobody writes to take no memory.
        libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = (
            ctypes.c_void_p,
            [ctypes.c_size_t],
            [ctypes.c_void_p],
        )
        for piece in [(libc.malloc(2**20), libc.malloc(64))[0] for _ in range(1024)]:
            libc.free(piece)
