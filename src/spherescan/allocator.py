"""How much memory the machine has, and how the C library hands it out."""

import ctypes
import os
from pathlib import Path

# Parameters of mallopt in glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_NEVER = -1
_PAD_BYTES = 64 << 20
# Of Linux, as a process within sees them: version 2 and version 1 of control groups.
CONTAINER_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


def keep_freed_memory() -> bool:
    """Keep the memory of freed tensors for the next ones instead of handing it back to the kernel.

    A training step frees and takes the same tensors again; every page that went back in between is
    filled with zeros anew, which for large tensors costs more than writing them. For processes that
    are ours: the command line.

    Returns:
        Whether the C library has such a setting.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _NEVER), (_TOP_PAD, _PAD_BYTES))
    return all(mallopt(parameter, value) == 1 for parameter, value in settings)


def memory_bytes() -> int:
    """Return how much memory this process may use: that of the machine, or of its container."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in CONTAINER_LIMITS:
        try:
            text = path.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            continue
        if text.isdecimal():  # not "max"
            found.append(int(text))
    return min(found)


def tells_lack_of_memory(error: Exception) -> bool:
    """Return whether an error is the one that Python, torch or the system has for it."""
    text = str(error)
    return (
        isinstance(error, MemoryError) or "allocate memory" in text or "not enough memory" in text
    )
