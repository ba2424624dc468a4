"""Chunks of tool poses, turned into joint set-points. No ROS, no torch.

`ee_delta` is six numbers in the base frame: a translation [m] and a rotation vector [rad], relative to the pose of the
step before. The first step is relative to the observation. It suits data recorded as commanded poses. `osc_delta` has
the same numbers as inputs of LIBERO's operational-space controller, which covers a part of each (operational_space.py).
`ee_relative` is relative to the pose of the observation, so that errors do not add up along a chunk (UMI, Chi et al.
2024).
`ee_position` is the pose itself in the base frame: a position and a rotation vector. An action with one number more has
a quaternion (w, x, y, z). robot.action_low and action_high of the checkpoint turn other units into metres and radians.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from vla_core.kinematics import operational_space
from vla_core.kinematics.ik import Kinematics, follow, quaternion_matrix, rotation_matrix, rotation_vector
from vla_core.profile import RobotProfile
from vla_model.config import RobotInterface
from vla_model.observation import chunk_steps, prefix_steps
from vla_model.policy import Job, Options, Policy, PolicyInfo, Prediction, WorldOptions
from vla_model.types import JOINTS, TOOL, Chunk, Observation

Acting = RobotInterface | PolicyInfo  # gives the meaning of actions
OSC = 'osc_delta'
_INSIDE = 0.003  # [m] from the sides of the workspace: between two steps the tool goes a little further out


class EndEffectorPolicy:
    """A policy with end-effector actions as one with joint set-points; see `Policy`, also for its threads.

    A policy with joint set-points that needs the pose of the tool in its state is given it, and its chunks are kept.

    policy: one whose state is the joints and the gripper. kinematics: of the profile's tool. Raises ValueError when the
    policy's state or action is nothing that an arm alone can give or do.
    """

    def __init__(self, policy: Policy, kinematics: Kinematics, profile: RobotProfile) -> None:
        if not policy.info.joints:
            check_actions(policy.info)
        self._policy, self._kinematics, self._profile = policy, kinematics, profile
        self._tool = tool = policy.info
        size = tool.dof + tool.gripper
        if tool.state_dim not in (0, size) and not tool.needs_tool:
            raise ValueError(
                f'the model wants a state of {tool.state_dim} numbers; only joints and gripper can be given, '
                f'{size} numbers'
            )
        self.info = replace(tool, action_space='joint_position', action_dim=size, needs_tool=False)

    def prepare(self, instruction: str) -> None:
        """See `Policy.prepare`."""
        self._policy.prepare(instruction)

    def act(self, observation: Observation, prefix: Chunk | None = None) -> Prediction:
        """See `Policy.act`. Raises ValueError, too, when the arm does not reach a step."""
        tool, profile, kinematics = self._tool, self._profile, self._kinematics
        origin = observation.positions
        if tool.needs_tool:
            observation = self._with_tool(observation)
        if tool.joints:
            return self._policy.act(observation, prefix)
        if prefix is None or not len(prefix.positions):
            found = self._policy.act(observation)
            poses = to_poses(kinematics, tool, origin, origin, found.chunk.positions, observation.velocities)
            positions = _reach(kinematics, profile, origin, *poses)
        else:
            steps = prefix_steps(self.info, prefix)
            given = to_actions(kinematics, tool, origin, steps, observation.velocities)
            found = self._policy.act(observation, replace(prefix, positions=given[:, : tool.arm_dim], space=TOOL))
            before = steps[-1, : tool.dof]
            if tool.action_space == OSC:  # the pose after a step follows from all before it
                whole = to_poses(kinematics, tool, origin, origin, found.chunk.positions, observation.velocities)
                poses = whole[0][len(steps) :], whole[1][len(steps) :]
            else:
                poses = to_poses(kinematics, tool, origin, before, found.chunk.positions[len(steps) :])
            positions = np.vstack([steps[:, : tool.dof], _reach(kinematics, profile, before, *poses)])
        return replace(found, chunk=replace(found.chunk, positions=positions, space=JOINTS))

    def _with_tool(self, observation: Observation) -> Observation:
        at, rotation, _ = self._kinematics(observation.positions)
        return replace(observation, tool=np.append(at, rotation_vector(rotation)))

    def start(self, output: str, observation: Observation, options: Options | None = None) -> Job[Any]:
        """See `Policy.start`."""
        if self._tool.needs_tool:
            observation = self._with_tool(observation)
        if isinstance(options, WorldOptions):
            after = (options.after or self.info.horizon) - 1
            target = chunk_steps(self.info, options.chunk, 'chunk', self.info.horizon)[after : after + 1]
            options = replace(options, chunk=self._of_tool(options.chunk, observation), target=target.flatten())
        return self._policy.start(output, observation, options)

    def _of_tool(self, chunk: Chunk, observation: Observation) -> Chunk:
        """Return a chunk of joint set-points as actions of the tool."""
        steps = chunk_steps(self.info, chunk, 'chunk', self.info.horizon)
        origin, tool = observation.positions, self._tool
        actions = to_actions(self._kinematics, tool, origin, steps, observation.velocities)
        return replace(chunk, positions=actions[:, : tool.arm_dim], space=TOOL)

    def warm_up(self) -> None:
        """See `Policy.warm_up`. The arm need not reach what a grey scene makes a model predict."""
        self._policy.warm_up()

    def example(self, grey: int = 128) -> Observation:
        """A grey scene, the arm at home."""
        return replace(self._policy.example(grey), positions=self._profile.home)

    def close(self) -> None:
        """See `Policy.close`."""
        self._policy.close()


def check_actions(robot: Acting) -> None:
    """Raises ValueError when the model has another number of actions than poses can be made of."""
    size = robot.action_dim - robot.gripper
    if size != 6 and (robot.action_space != 'ee_position' or size != 7):
        raise ValueError(
            f'the model has {size} numbers per {robot.action_space} action beside the gripper: 6 are known '
            '(translation and rotation vector), or 7 for ee_position (translation and quaternion w, x, y, z)'
        )


def to_poses(
    kinematics: Kinematics,
    robot: Acting,
    origin: np.ndarray,
    before: np.ndarray,
    actions: np.ndarray,
    velocities: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """(n, 3) [m] and (n, 3, 3) in the base frame: what actions (n, action_dim) ask the tool for.

    origin, before: (dof,) joint positions [rad] of the observation, and of the step before the first of the actions.
    velocities: (dof,) [rad/s] of the joints at the latter; None: at rest.
    """
    if robot.action_space == OSC:
        return operational_space.poses(_tool(kinematics, before, velocities), actions[:, :6], robot.dt)
    moves, size = actions[:, :3], robot.action_dim - robot.gripper
    turns = np.array([rotation_matrix(a[3:6]) if size == 6 else quaternion_matrix(a[3:7]) for a in actions])
    if robot.action_space == 'ee_position':
        return moves, turns
    at, rotation, _ = kinematics(origin if robot.action_space == 'ee_relative' else before)
    if robot.action_space == 'ee_relative':
        return at + moves, turns @ rotation
    rotations = []
    for turn in turns:
        rotation = turn @ rotation
        rotations.append(rotation)
    return at + np.cumsum(moves, axis=0), np.array(rotations)


def to_actions(
    kinematics: Kinematics, robot: Acting, origin: np.ndarray, steps: np.ndarray, velocities: np.ndarray | None = None
) -> np.ndarray:
    """(n, action_dim): the actions that lead from origin (dof,) through steps (n, dof + gripper); see to_poses."""
    size = robot.action_dim - robot.gripper
    actions = np.zeros((len(steps), robot.action_dim))
    if robot.gripper:
        actions[:, size] = steps[:, robot.dof]
    if robot.action_space == OSC:
        reached = [kinematics(step[: robot.dof])[:2] for step in steps]
        positions, rotations = (np.array(part) for part in zip(*reached, strict=True))
        actions[:, :6] = operational_space.actions(
            _tool(kinematics, origin, velocities), positions, rotations, robot.dt
        )
        return actions
    at, rotation, _ = kinematics(origin)
    for action, step in zip(actions, steps, strict=True):
        there, turned, _ = kinematics(step[: robot.dof])
        absolute = robot.action_space == 'ee_position'
        action[:3] = there if absolute else there - at
        turn = turned if absolute else turned @ rotation.T
        action[3:size] = rotation_vector(turn) if size == 6 else _quaternion(turn)
        if robot.action_space == 'ee_delta':
            at, rotation = there, turned
    return actions


def _tool(kinematics: Kinematics, positions: np.ndarray, velocities: np.ndarray | None) -> operational_space.Tool:
    at, rotation, jacobian = kinematics(positions)
    velocity = jacobian @ velocities if velocities is not None else np.zeros(6)
    return operational_space.Tool(at, rotation, velocity, rotation)


def _reach(
    kinematics: Kinematics, profile: RobotProfile, start: np.ndarray, moves: np.ndarray, turns: np.ndarray
) -> np.ndarray:
    if profile.workspace is not None:  # a table a few mm lower than the model thinks must not stop the arm
        moves = np.clip(moves, profile.workspace[:3] + _INSIDE, profile.workspace[3:] - _INSIDE)
    return follow(kinematics, moves, turns, start, profile.position_lower, profile.position_upper)


def _quaternion(rotation: np.ndarray) -> np.ndarray:
    """(w, x, y, z) with w >= 0."""
    vector = rotation_vector(rotation)
    angle = float(np.linalg.norm(vector))
    return np.append(np.cos(angle / 2), 0.5 * np.sinc(angle / (2 * np.pi)) * vector)
