"""The tool centre point in Pinocchio's model of an arm: the profile's tool frame plus its offset."""

from typing import Any

import numpy as np

from vla_core.profile import RobotProfile

TOOL = 'tool centre point'  # name of its frame in the model


def tool_frame(model: Any, profile: RobotProfile) -> int:
    """Add the frame of the tool centre point to a model and return its number.

    Raises ValueError naming the link of the profile that the model lacks.
    """
    import pinocchio

    if missing := [n for n in (profile.base_frame, profile.tool_frame) if not model.existFrame(n)]:
        last = model.getJointId(profile.joint_names[-1])
        there = [f.name for f in model.frames if f.type == pinocchio.BODY and f.parentJoint == last]
        raise ValueError(
            f'the robot description has no link {", ".join(missing)}: set robot.base_frame and robot.tool_frame to '
            f'links that it has ({", ".join(there)} move with {profile.joint_names[-1]}), robot.tool_offset to where '
            'the tool is in the tool frame'
        )
    number = model.getFrameId(profile.tool_frame)
    frame = model.frames[number]
    offset = np.zeros(6) if profile.tool_offset is None else profile.tool_offset
    place = frame.placement * pinocchio.SE3(pinocchio.rpy.rpyToMatrix(offset[3:]), offset[:3])
    return model.addFrame(pinocchio.Frame(TOOL, frame.parentJoint, number, place, pinocchio.OP_FRAME))
