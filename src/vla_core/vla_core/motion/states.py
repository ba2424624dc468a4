"""What the executor is doing, and why not more. The numbers are those of vla_msgs/ExecutorStatus (a test compares)."""

import re
from enum import IntEnum


class State(IntEnum):
    """What the set-point does."""

    INACTIVE = 0
    HOLDING = 1
    EXECUTING = 2
    BRAKING = 3


class Hold(IntEnum):
    """Why the arm is not moving or about to stop."""

    NONE = 0
    IDLE = 1
    CHUNKS_STOPPED = 2
    STOP_REQUESTED = 3
    OPERATOR_STOP = 4
    DEACTIVATED = 5
    JOINT_STATE_STALE = 7
    CLOCK_JUMP = 8
    TRACKING_ERROR = 9
    COLLISION_AHEAD = 10
    WORKSPACE = 11
    EMERGENCY_STOP = 12
    CONTROLLER_MISSING = 13
    COMPETING_PUBLISHER = 14
    ROBOT_FAULT = 15
    CHUNK_STALE = 16
    BLOCKED = 17
    JOINT_STATE_FROZEN = 18


# Reasons that stand until they are taken back: no chunk is taken meanwhile. Weakest first.
FAULTS = (
    Hold.CHUNK_STALE,
    Hold.JOINT_STATE_STALE,
    Hold.BLOCKED,  # weaker than what may be its cause
    Hold.JOINT_STATE_FROZEN,
    Hold.CONTROLLER_MISSING,
    Hold.COMPETING_PUBLISHER,
    Hold.ROBOT_FAULT,
    Hold.OPERATOR_STOP,
    Hold.EMERGENCY_STOP,
)


_NUMBER = re.compile(r'\d+(?:\.\d+)?')
_SAME = 0.1  # of a number: by so much it may change before a sentence is another one


def renewed(old: str, new: str) -> str:
    """The sentence about a fault that stands: `old` until `new` has other words, or a number that differs by a tenth.

    Times and distances are measured anew with every message; a sentence that changed with each could not be read.
    """
    if _NUMBER.sub('', old) != _NUMBER.sub('', new):
        return new
    pairs = zip(map(float, _NUMBER.findall(old)), map(float, _NUMBER.findall(new)), strict=True)
    return old if all(abs(x - y) <= _SAME * x for x, y in pairs) else new


def strength(hold: Hold) -> int:
    """A weaker reason to stop never replaces a stronger one: what the weaker allows, the stronger forbids."""
    if hold is Hold.EMERGENCY_STOP:
        return len(FAULTS) + 1
    if hold is Hold.DEACTIVATED:
        return len(FAULTS)
    return FAULTS.index(hold) + 1 if hold in FAULTS else 0
