"""Freed memory, kept for the next step."""

import ctypes
import importlib.util
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # of malloc.h
ACCELERATORS = ("jax_plugins", "libtpu")
"""What JAX finds GPUs and TPUs by."""


def keep_freed_memory() -> None:
    """Has glibc keep what this process frees, where JAX computes on the CPU; other C libraries are left as they are.

    XLA allocates what a program needs on a CPU anew at every call, hundreds of MiB in a step of training. By default
    glibc gives such blocks back to the system, which maps them again page by page: a tenth to a fifth of a step. So the
    process stays as large as it was at its largest, and all threads share one heap. It must be called before JAX
    computes: threads that have a heap of their own go on as before.
    """
    if sys.platform != "linux" or any(map(importlib.util.find_spec, ACCELERATORS)):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(M_TRIM_THRESHOLD, -1)
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_ARENA_MAX, 1)
