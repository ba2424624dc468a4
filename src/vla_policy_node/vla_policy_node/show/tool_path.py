"""The tool's way, by forward kinematics of joints. No ROS."""

import colorsys
import math
from dataclasses import dataclass

import numpy as np

from vla_core.kinematics.ik import Kinematics
from vla_core.motion.chunk import StampedChunk, ordered_positions
from vla_core.profile import RobotProfile

Colour = tuple[float, float, float]
UNKNOWN: Colour = (0.35, 0.65, 1.0)  # of a step whose confidence the source does not know
FROZEN: Colour = (1.0, 1.0, 1.0)  # of a step that was given to the model, not decided


@dataclass(frozen=True, eq=False)
class ToolPath:
    """Where a chunk takes the tool, in the profile's base frame; n steps."""

    chunk: StampedChunk
    due: np.ndarray  # (n,) int64 [ns]
    joints: np.ndarray  # (n, dof) [rad]
    positions: np.ndarray  # (n, 3) [m]
    rotations: np.ndarray  # (n, 3, 3)
    colours: list[Colour]  # n, 0..1

    @property
    def end(self) -> int:
        """[ns] when the last step is due."""
        return int(self.due[-1]) if len(self.due) else self.chunk.t_ref


def tool_path(chunk: StampedChunk, profile: RobotProfile, kinematics: Kinematics) -> ToolPath:
    """Raises Refusal when the chunk is not one of this robot. One that leaves the limits is shown all the same."""
    joints = ordered_positions(chunk, profile.joint_names)
    poses = [kinematics(q)[:2] for q in joints]
    return ToolPath(
        chunk,
        due=chunk.t_ref + np.round(np.arange(1, len(joints) + 1) * chunk.dt * 1e9).astype(np.int64),
        joints=joints,
        positions=np.array([p for p, _ in poses]).reshape(-1, 3),
        rotations=np.array([r for _, r in poses]).reshape(-1, 3, 3),
        colours=colours(chunk),
    )


def colours(chunk: StampedChunk) -> list[Colour]:
    """Of each step: white where it was given, then by confidence from red (0) over yellow to green (1)."""
    sure = chunk.confidence
    if sure is None or len(sure) != chunk.horizon:
        return [UNKNOWN] * chunk.horizon
    return [FROZEN if i < chunk.frozen else _colour(float(c)) for i, c in enumerate(sure)]


def _colour(confidence: float) -> Colour:
    if math.isnan(confidence):
        return UNKNOWN
    return colorsys.hsv_to_rgb(min(max(confidence, 0.0), 1.0) / 3, 1.0, 1.0)
