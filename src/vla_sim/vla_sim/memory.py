"""Memory of a process that makes large objects in one thread while others send images."""

import ctypes

_M_MMAP_THRESHOLD = -3  # malloc.h
_LARGE = 128 * 1024  # [byte] glibc's own value at the start


def return_large_blocks() -> None:
    """Have the C library give blocks of 128 KiB and more back to the system as soon as they are freed.

    By itself glibc raises that limit to the largest block that was ever freed, up to 32 MiB. Models, meshes and
    textures then come from the same heaps as the messages of other threads, which keep the gaps from being used or
    given back: over ROS 30 MB per change of task, up to 700 MB. Another C library is left as it is.
    """
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE)
