"""Memory of a process that makes large objects in one thread while other threads send images."""

import ctypes

_M_MMAP_THRESHOLD = -3  # malloc.h
_LARGE = 128 * 1024  # [byte] glibc's value at the start


def return_large_blocks() -> None:
    """Let glibc return blocks of 128 KiB and more to the system when they are freed; other C libraries are unchanged.

    By default glibc raises that limit to the largest block that was ever freed, up to 32 MiB. Models, meshes and
    textures then share heaps with the messages of other threads, which fragments them: over ROS 30 MB per change of
    task, up to 700 MB.
    """
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE)
