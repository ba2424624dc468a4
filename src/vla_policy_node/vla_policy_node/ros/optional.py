"""Message packages that only some robots need: imported when something asks for them, never before."""

import importlib
from typing import Any


def message_type(package: str, kind: str, name: str, wanted_by: str) -> Any:
    """The class package.kind.name, e.g. franka_msgs.action.Grasp.

    Raises ValueError naming the package to install; wanted_by: what asks for it, as the user knows it.
    """
    try:
        return getattr(importlib.import_module(f'{package}.{kind}'), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f'{wanted_by} needs {package}/{kind}/{name}, which is not here ({error}): install the ROS package '
            f'{package} (apt: ros-$ROS_DISTRO-{package.replace("_", "-")}, or build it) and source its workspace'
        ) from None
