"""What the C library does with memory that a fit has freed."""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of glibc's malloc.h
_NEVER = 1 << 30
_MOST = 1 << 25  # the largest threshold of mappings that older versions take; beyond it they refuse


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
    # Setting either one ends glibc's own adaptation of both, so trimming is left alone where mapping cannot be set.
    raised = any(mallopt(_MMAP_THRESHOLD, most) == 1 for most in (_NEVER, _MOST))
    return raised and mallopt(_TRIM_THRESHOLD, _NEVER) == 1
