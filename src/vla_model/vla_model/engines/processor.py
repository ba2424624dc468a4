"""The processor this runs on. Importing this costs no torch."""

import platform
from pathlib import Path

CPUINFO = Path('/proc/cpuinfo')


def cpu_name() -> str:
    """Return the model name of the processor."""
    return _field('model name') or platform.processor() or platform.machine()


def cpu_flags() -> frozenset[str]:
    """Return the instruction sets of the processor, as Linux names them; empty where it does not list them."""
    return frozenset(_field('flags').split())


def has_amx() -> bool:
    """Return whether the processor multiplies bfloat16 matrices in tiles (AMX), eight times faster than float32."""
    return 'amx_bf16' in cpu_flags()


def _field(name: str) -> str:
    try:
        for line in CPUINFO.read_text().splitlines():
            if line.startswith(name):
                return line.split(':', 1)[1].strip()
    except OSError:
        pass
    return ''
