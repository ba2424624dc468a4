"""Models that think in poses of the tool: their chunks turned into joint set-points. No ROS, no torch.

`ee_delta` is the action of LIBERO: six numbers, a translation [m] and a rotation vector [rad] in the base frame, each
relative to the pose of the step before (the first: to that of the observation). `ee_position` is the pose itself in the
base frame: a position and a rotation vector, or a quaternion (w, x, y, z) where an action has one number more. What the
model counts in other units becomes metres and radians by robot.action_low and action_high of the checkpoint.
"""

import dataclasses
from typing import Any

import numpy as np

from vla_model.observation import prefix_steps, state_of
from vla_model.types import Chunk, Observation
from vla_policy_node.core.profile import RobotProfile
from vla_policy_node.kinematics.ik import Kinematics, follow, quaternion_matrix, rotation_matrix, rotation_vector


class EndEffectorPolicy:
    """A policy with end-effector actions as one with joint set-points; all but `act` is the model's own.

    policy: a vla_model Policy whose state is the joints and the gripper. kinematics: of the profile's tool. Raises
    ValueError when the model's state or action is nothing that an arm alone can give or do.
    """

    def __init__(self, policy: Any, kinematics: Kinematics, profile: RobotProfile) -> None:
        robot = policy.config.robot
        self._policy, self._kinematics, self._profile = policy, kinematics, profile
        self._size = robot.action_dim - robot.gripper
        self._delta = robot.action_space == 'ee_delta'
        if self._size != 6 and (self._delta or self._size != 7):
            raise ValueError(
                f'the model has {self._size} numbers per {robot.action_space} action beside the gripper: 6 are known '
                '(translation and rotation vector), or 7 for ee_position (translation and quaternion w, x, y, z)'
            )
        if robot.state_dim != robot.dof + robot.gripper:
            raise ValueError(
                f'the model wants a state of {robot.state_dim} numbers; only joints and gripper can be given, '
                f'{robot.dof + robot.gripper} numbers'
            )

    def __getattr__(self, name: str) -> Any:
        return getattr(self._policy, name)

    def act(self, observation: Observation, prefix: Chunk | None = None) -> Chunk:
        """As Policy.act, in joint set-points. Raises ValueError, too, when the arm does not reach a step."""
        robot, profile = self._policy.config.robot, self._profile
        steps = None
        if prefix is not None and len(prefix.positions):
            steps = prefix_steps(robot, prefix)
        given = None if steps is None else self._as_actions(observation.positions, steps, robot)
        values, probability = self._policy.actions(
            observation.images, state_of(robot, observation), observation.instruction, given
        )
        done = 0 if steps is None else len(steps)
        start = observation.positions if steps is None else steps[-1, : robot.dof]
        poses = self._as_poses(start, values[done:])
        reached = follow(self._kinematics, *poses, start, profile.position_lower, profile.position_upper)
        positions = reached if steps is None else np.vstack([steps[:, : robot.dof], reached])
        gripper = values[:, self._size].copy() if robot.gripper else np.zeros(0)
        if steps is not None and robot.gripper:
            gripper[:done] = steps[:, robot.dof]
        return Chunk(positions, gripper, robot.dt, done, probability.mean(1))

    def warm_up(self, runs: int = 2) -> None:
        """As Policy.warm_up: a first forward, and the inverse kinematics behind it."""
        for run in range(runs):
            seen = self.example(128 + run)
            self._policy.actions(seen.images, state_of(self._policy.config.robot, seen), seen.instruction)
        self._policy.warm_up(0)  # nothing more to capture

    def example(self, grey: int = 128) -> Observation:
        """A grey scene, the arm at home."""
        return dataclasses.replace(self._policy.example(grey), positions=self._profile.home)

    def _as_poses(self, start: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(n, 3) [m] and (n, 3, 3): what actions (n, size) ask for, from joint positions start (dof,) on."""
        moves = actions[:, :3]
        turns = [
            rotation_matrix(a[3:6]) if self._size == 6 else quaternion_matrix(a[3:7]) for a in actions[:, : self._size]
        ]
        if not self._delta:
            return moves, np.array(turns)
        at, rotation, _ = self._kinematics(start)
        rotations = []
        for turn in turns:
            rotation = turn @ rotation
            rotations.append(rotation)
        return at + np.cumsum(moves, axis=0), np.array(rotations)

    def _as_actions(self, start: np.ndarray, steps: np.ndarray, robot: Any) -> np.ndarray:
        """(d, action_dim): the actions that lead from start (dof,) through steps (d, dof + gripper)."""
        actions = np.zeros((len(steps), robot.action_dim))
        before, turned_before, _ = self._kinematics(start)
        for action, step in zip(actions, steps, strict=True):
            at, turned, _ = self._kinematics(step[: robot.dof])
            action[:3] = at - before if self._delta else at
            turn = turned @ turned_before.T if self._delta else turned
            action[3 : self._size] = rotation_vector(turn) if self._size == 6 else _quaternion(turn)
            before, turned_before = at, turned
        if robot.gripper:
            actions[:, self._size] = steps[:, robot.dof]
        return actions


def _quaternion(rotation: np.ndarray) -> np.ndarray:
    """(w, x, y, z) with w >= 0."""
    vector = rotation_vector(rotation)
    angle = float(np.linalg.norm(vector))
    return np.append(np.cos(angle / 2), 0.5 * np.sinc(angle / (2 * np.pi)) * vector)
