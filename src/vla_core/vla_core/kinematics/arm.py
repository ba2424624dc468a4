"""Kinematics of one arm from its URDF, by Pinocchio. No ROS."""

from typing import Any

import numpy as np

from vla_core.kinematics.ik import Kinematics
from vla_core.kinematics.tool import tool_frame
from vla_core.profile import RobotProfile


def load_kinematics(urdf: str, profile: RobotProfile) -> Kinematics:
    """Return the kinematics of the profile's tool in its base frame. Joints outside the profile stay at zero.

    urdf: the text. The result is not thread-safe. Raises ValueError naming the joint or frame that the URDF lacks, or
    the package that is not installed.
    """
    try:
        import pinocchio
    except ImportError as error:
        raise ValueError(f'kinematics need Pinocchio ({error}): pip install pin') from None
    try:
        model = pinocchio.buildModelFromXML(urdf)
    except Exception as error:  # Boost.Python's, of several types
        raise ValueError(f'the robot description is no URDF that Pinocchio reads: {error}') from None
    if missing := [name for name in profile.joint_names if not model.existJointName(name)]:
        raise ValueError(
            f'the robot description has no joint {", ".join(missing)}: is the robot profile of this robot?'
        )
    tool = tool_frame(model, profile)
    data, neutral = model.createData(), pinocchio.neutral(model)
    joints = [model.joints[model.getJointId(name)] for name in profile.joint_names]
    if any(joint.nq != 1 for joint in joints):
        raise ValueError('a joint of the robot profile has no position limits in the robot description (continuous)')
    places, columns = [j.idx_q for j in joints], [j.idx_v for j in joints]
    base = model.getFrameId(profile.base_frame)

    def kinematics(positions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        q: Any = neutral.copy()
        q[places] = positions
        jacobian = pinocchio.computeFrameJacobian(model, data, q, tool, pinocchio.LOCAL_WORLD_ALIGNED)[:, columns]
        pinocchio.framesForwardKinematics(model, data, q)
        into, pose = data.oMf[base].rotation.T, data.oMf[base].actInv(data.oMf[tool])
        turned = np.vstack([into @ jacobian[:3], into @ jacobian[3:]])
        return pose.translation.copy(), pose.rotation.copy(), turned

    return kinematics
