"""What the C library does with memory that a fit has freed."""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of glibc's malloc.h
_NEVER = 1 << 30


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory of this process for the next allocation; elsewhere nothing happens.

    Every step of a fit allocates the same large tensors. By default most are mapped anew, and their pages are faulted
    in and zeroed again: some 90,000 faults in a step of 4,096 rows (docs/log.md).

    Returns
    -------
    bool
        Whether the C library knows the setting.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # macOS, musl and Windows have none
        return False
    return all(mallopt(option, _NEVER) == 1 for option in (_TRIM_THRESHOLD, _MMAP_THRESHOLD))
