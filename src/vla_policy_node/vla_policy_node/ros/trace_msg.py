"""Traces to and from vla_msgs/VisualTrace."""

import array

import numpy as np
from builtin_interfaces.msg import Time

from vla_model.types import Trace
from vla_msgs.msg import VisualTrace


def trace_msg(stamp: Time, frame_id: str, kind: int, trace: Trace) -> VisualTrace:
    """Return the message of a trace. kind: of VisualTrace."""
    msg = VisualTrace(kind=kind, camera=trace.camera, width=trace.width, height=trace.height)
    msg.header.stamp, msg.header.frame_id = stamp, frame_id
    msg.u, msg.v = (array.array('f', column) for column in np.asarray(trace.points, np.float32).T)
    return msg


def trace_of(msg: VisualTrace) -> Trace:
    """Return the trace of a message. Raises ValueError where it has not as many rows as columns."""
    if len(msg.u) != len(msg.v):
        raise ValueError(f'the trace has {len(msg.u)} columns u and {len(msg.v)} rows v: give as many')
    return Trace(msg.camera, np.column_stack((msg.u, msg.v)).astype(np.float64), msg.width, msg.height)
