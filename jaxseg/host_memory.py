"""What the C library does with memory that is free again."""

import ctypes
import sys

KEEPING = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "-1"}
"""The environment that has the same effect on a program from its start."""
_PARAMETERS = {-8: 1, -4: 0, -1: -1}


def keep_freed_memory() -> None:
    """From now on the process keeps what it frees, on Linux with glibc; elsewhere nothing changes.

    glibc gives large blocks back to the kernel. On a CPU these are an XLA program's temporaries, which come back as pages of zeros at
    every step, for a tenth to a sixth of its time. It is for programs of one's own, not for a library's import.

    Source: mallopt(3): M_ARENA_MAX, M_MMAP_MAX, M_TRIM_THRESHOLD.
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        for parameter, value in _PARAMETERS.items():
            mallopt(parameter, value)
