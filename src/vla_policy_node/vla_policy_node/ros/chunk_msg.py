"""ActionChunk messages to and from what the core works with."""

import array

import numpy as np
from builtin_interfaces.msg import Duration, Time

from vla_core.clocks import NS
from vla_core.motion.chunk import StampedChunk
from vla_model.types import Chunk
from vla_msgs.msg import ActionChunk


def to_ns(stamp: Time | Duration) -> int:
    return stamp.sec * NS + stamp.nanosec


def to_time(ns: int) -> Time:
    return Time(sec=int(ns // NS), nanosec=int(ns % NS))


def to_duration(seconds: float) -> Duration:
    ns = round(seconds * 1e9)
    return Duration(sec=int(ns // NS), nanosec=int(ns % NS))


def stamped_chunk(msg: ActionChunk) -> StampedChunk:
    """The message's content as arrays; sizes are checked where the chunk is used."""
    return StampedChunk(
        t_ref=to_ns(msg.header.stamp),
        epoch=msg.epoch,
        sequence=msg.sequence,
        source=msg.source,
        joint_names=tuple(msg.joint_names),
        dt=msg.dt,
        horizon=msg.horizon,
        positions=np.asarray(msg.positions, float),
        gripper=np.asarray(msg.gripper, float),
        shadow=msg.shadow,
        frozen=msg.frozen_steps,
        confidence=np.asarray(msg.confidence, np.float32),
        instruction=msg.instruction,
        model_id=msg.model_id,
    )


def chunk_msg(
    chunk: Chunk | None,
    *,
    t_ref: int,
    frame_id: str,
    epoch: int,
    sequence: int,
    source: str,
    joint_names: tuple[str, ...],
    shadow: bool = False,
    instruction: str = '',
    model_id: str = '',
    inference_time: float = 0.0,
) -> ActionChunk:
    """The message for a chunk; None makes a stop request. t_ref in ns, inference_time in s."""
    msg = ActionChunk(
        epoch=epoch,
        sequence=sequence,
        source=source,
        shadow=shadow,
        joint_names=list(joint_names),
        instruction=instruction,
        model_id=model_id,
        inference_time=to_duration(inference_time),
    )
    msg.header.stamp = to_time(t_ref)
    msg.header.frame_id = frame_id
    if chunk is not None:
        msg.dt = float(chunk.dt)
        msg.horizon = len(chunk.positions)
        msg.positions = array.array('d', np.ascontiguousarray(chunk.positions, float).ravel())
        msg.gripper = array.array('d', np.asarray(chunk.gripper, float))
        msg.frozen_steps = int(chunk.frozen)
        msg.confidence = array.array('f', np.asarray(chunk.confidence, np.float32))
    return msg
