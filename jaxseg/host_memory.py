"""What the C library does with memory that is free again."""

import ctypes
import platform
import sys
from collections.abc import Mapping
from pathlib import Path

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


def with_huge_pages(environment: Mapping[str, str]) -> dict[str, str] | None:
    """The environment in which a program takes its large blocks of memory in pages of 2 MiB, from its start on; None where that would
    change nothing: no Linux, a C library that cannot, a kernel that never gives them or always does, or GLIBC_TUNABLES set already.

    The temporaries of an XLA program on a CPU come back at every step, and take a fault for each of their pages. With huge pages these
    are 30 to 100 times fewer; and unlike one that keeps what it frees, the process holds no more than before.

    Source: glibc's manual, "Memory Allocation Tunables", from 2.35 on; the kernel's Documentation/admin-guide/mm/transhuge.rst.
    """
    given = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if sys.platform != "linux" or "GLIBC_TUNABLES" in environment or not given.exists() or "[madvise]" not in given.read_text():
        return None
    library, version = platform.libc_ver()
    if library != "glibc" or tuple(map(int, version.split(".")[:2])) < (2, 35):
        return None
    return {**environment, "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
