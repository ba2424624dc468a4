"""./vla record: runs the recorder node in this process."""

import sys
import tempfile
from pathlib import Path

from vla_bringup.bags import recorder_node
from vla_bringup.processes.nodes import recorder_node as spec_of
from vla_bringup.processes.supervisor import command


def record(
    out: Path, robot: str, namespace: str, minutes: float, compress: bool, use_sim_time: bool, keep_free: float
) -> bool:
    """Record until Ctrl-C or for `minutes` of wall time (0: no limit). Raises ValueError for wrong options.

    keep_free: least free space on the disk [GB].
    """
    spec = spec_of(
        robot,
        out.absolute(),
        namespace=f'/{namespace.strip("/")}' if namespace.strip('/') else '',
        use_sim_time=use_sim_time,
        compress=compress,
        minutes=minutes,
        keep_free=keep_free,
    )
    with tempfile.TemporaryDirectory() as folder:
        recorder_node.main([sys.argv[0], *command(spec, Path(folder))[1:]])
    return True
