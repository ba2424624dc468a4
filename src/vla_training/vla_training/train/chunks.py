"""Chunks of the frames of an episode.

A chunk holds the set-points due 1 .. horizon steps after its frame. A step is one or several frames. An initial rest of
the demonstrator is left out (see `starts`). In a disturbed demonstration the sent set-point differs from the wanted
one. The chunk then leads from the one to the other within a few frames.
"""

import numpy as np

from vla_core.kinematics.ik import Kinematics
from vla_model.config import RobotInterface
from vla_model.policy import PolicyInfo
from vla_policy_node.policy.end_effector import OSC, to_actions
from vla_training.data.features import ACTION, STATE, SUBTASK, SUCCESS, executed
from vla_training.lerobot import Dataset, Episode

RECOVER = 0.5  # share of a disturbance that is left one frame later
STILL = 0.003  # [rad] smallest motion of a joint since the frame that ends a rest
FINGERS = 5e-4  # [m] smallest motion of the gripper's opening between two frames that ends a rest
TAIL = 1.5  # [s] kept after success: time to retreat from the released object
BACK = 0.2  # [rad] per joint: closer to its final pose the arm counts as resting
LONGEST_REST = 5  # most frames that are left out at the start of a chunk


def starts(episode: Episode, dof: int) -> np.ndarray:
    """Return the first frame of each frame's chunk, (T,) int64: the next frame that moves.

    A model that sees no velocities cannot know when a rest is over. It learns the most frequent action of a pose. For a
    rest pose that is to rest, so the arm would stay for ever. Without the rest it moves at once, and the executor
    accelerates within its limits. A rest in which the gripper moves has a purpose and is kept.
    """
    wanted, state = np.asarray(episode.columns[ACTION], np.float64), np.asarray(episode.columns[STATE], np.float64)
    before = np.concatenate([state[:1], wanted[:-1]])  # set-point before each frame
    fingers = state[:, dof:]
    moving = np.abs(np.diff(fingers, axis=0, append=fingers[-1:])).max(1, initial=0) > FINGERS
    found = np.arange(len(wanted))
    for i in range(len(wanted)):
        for k in range(i, min(i + LONGEST_REST, len(wanted) - 1)):
            still = np.abs(wanted[k, :dof] - before[i, :dof]).max() < STILL
            if not still or moving[k] or (i > 0 and (wanted[k, dof:] != before[i, dof:]).any()):
                break
            found[i] = k + 1
    return found


def stride(data: Dataset, robot: RobotInterface | PolicyInfo) -> int:
    """Return the frames per step of a chunk. Raises ValueError where that is no whole number."""
    frames = robot.dt * data.fps
    if frames < 0.5 or abs(frames - round(frames)) > 1e-6:
        raise ValueError(
            f'{data.folder} has {data.fps:g} frames/s, the model steps of {robot.dt:g} s: collect or convert others'
        )
    return round(frames)


def chunks_of(episode: Episode, dof: int, horizon: int, stride: int = 1) -> np.ndarray:
    """Return the following set-points [rad], [m] of each frame, (T, horizon, dof + gripper) float64.

    stride: frames per step. Chunks start at `starts`. After the end of the episode the last set-point is held.
    """
    wanted = np.asarray(episode.columns[ACTION], np.float64)
    ahead = stride * np.arange(1, horizon + 1)  # frames
    step = np.minimum(starts(episode, dof)[:, None] + ahead - 1, len(wanted) - 1)
    chunks = wanted[step]
    if (sent := executed(episode.columns)) is not None:
        error = np.asarray(sent, np.float64)[:, :dof] - wanted[:, :dof]
        now = np.concatenate([np.zeros((1, dof)), error[:-1]])  # an action is due one frame later
        left = RECOVER**ahead
        chunks[:, :, :dof] += now[:, None] * left[:, None]
    return chunks


def actions_of(
    episode: Episode, robot: RobotInterface, stride: int, kinematics: Kinematics | None, length: int | None = None
) -> np.ndarray:
    """Return the model's actions of the first `length` frames (None: all), (length, horizon, action_dim) float64.

    Actions are in robot units. kinematics: of the robot's tool, for actions of the tool.
    """
    chunks = chunks_of(episode, robot.dof, robot.horizon, stride)[:length]
    state = np.asarray(episode.columns[STATE], np.float64)[: len(chunks), : robot.dof]
    return np.stack([action_of(robot, kinematics, q, chunk) for q, chunk in zip(state, chunks, strict=True)])


def sent_chunks(
    episode: Episode, robot: RobotInterface, stride: int, kinematics: Kinematics | None, length: int
) -> np.ndarray:
    """Return the actions that were sent after each of the first `length` frames, (length, horizon, action_dim)."""
    columns = episode.columns
    found = executed(columns)
    sent = np.asarray(columns[ACTION] if found is None else found, np.float64)
    step = np.minimum(np.arange(length)[:, None] + stride * np.arange(1, robot.horizon + 1) - 1, len(sent) - 1)
    state = np.asarray(columns[STATE], np.float64)[:length, : robot.dof]
    return np.stack([action_of(robot, kinematics, q, sent[rows]) for q, rows in zip(state, step, strict=True)])


def action_of(robot: RobotInterface, kinematics: Kinematics | None, q: np.ndarray, chunk: np.ndarray) -> np.ndarray:
    """Convert set-points (horizon, dof + gripper) to actions (horizon, action_dim) of an arm at q (dof,) [rad]."""
    if robot.action_space == 'joint_position':
        return chunk
    if robot.action_space == 'joint_delta':
        return np.column_stack([chunk[:, : robot.dof] - q, chunk[:, robot.dof :]])
    if robot.action_space == OSC:
        raise ValueError('recorded joints do not give the inputs of a controller (osc_delta): train ee_relative')
    assert kinematics is not None
    return to_actions(kinematics, robot, q, chunk)


def frames_used(episode: Episode, dof: int, fps: float) -> int:
    """Return the number of frames to learn from.

    Frames end with the last sub-task, and TAIL after success, where these are known: the way back is long and useless.
    They also end before the arm comes to rest at its initial pose. There the images are much the same as at the start,
    for example of a pressed button. A model that learns to rest there never starts.
    """
    named = [i for i, subtask in enumerate(episode.columns.get(SUBTASK, [])) if subtask]
    length = named[-1] + 1 if named else len(episode)
    done = np.asarray(episode.columns.get(SUCCESS, []), bool)
    if len(done) and done[-1]:
        length = min(length, len(done) - int(done[::-1].argmin() or len(done)) + round(TAIL * fps))
    q = np.asarray(episode.columns[STATE], np.float64)[:, :dof]
    if np.abs(q[length - 1] - q[0]).max() < 2 * BACK:
        away = np.flatnonzero(np.abs(q[:length] - q[length - 1]).max(1) > BACK)
        length = int(away[-1]) + 1 if len(away) else length
    return length
