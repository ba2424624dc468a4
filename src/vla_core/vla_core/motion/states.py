"""States of the executor and reasons to hold, numbered as in vla_msgs/ExecutorStatus (a test compares)."""

import re
from enum import IntEnum


class State(IntEnum):
    """Motion of the set-point."""

    INACTIVE = 0
    HOLDING = 1
    EXECUTING = 2
    BRAKING = 3


class Hold(IntEnum):
    """Reason why the arm does not move, or is about to stop."""

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


# Reasons that stay in force until they are cleared; meanwhile no chunk is accepted. Weakest first.
FAULTS = (
    Hold.CHUNK_STALE,
    Hold.JOINT_STATE_STALE,
    Hold.BLOCKED,  # weaker than the faults that may cause it
    Hold.JOINT_STATE_FROZEN,
    Hold.CONTROLLER_MISSING,
    Hold.COMPETING_PUBLISHER,
    Hold.ROBOT_FAULT,
    Hold.OPERATOR_STOP,
    Hold.EMERGENCY_STOP,
)


_NUMBER = re.compile(r'\d+(?:\.\d+)?')
_SAME = 0.1  # relative change of a number up to which a message counts as the same


def renewed(old: str, new: str) -> str:
    """Return the message of a fault in force: `old` until `new` has other words, or a number that differs by a tenth.

    Times and distances are measured at each control step; a message that changed as often could not be read.
    """
    if _NUMBER.sub('', old) != _NUMBER.sub('', new):
        return new
    pairs = zip(map(float, _NUMBER.findall(old)), map(float, _NUMBER.findall(new)), strict=True)
    return old if all(abs(x - y) <= _SAME * x for x, y in pairs) else new


def strength(hold: Hold) -> int:
    """Return the rank of a reason to stop; 0 is the weakest. A weaker reason never replaces a stronger one."""
    if hold is Hold.EMERGENCY_STOP:
        return len(FAULTS) + 1
    if hold is Hold.DEACTIVATED:
        return len(FAULTS)
    return FAULTS.index(hold) + 1 if hold in FAULTS else 0
