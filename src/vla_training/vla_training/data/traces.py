"""Labels of traces: the way of the tool in an image until it touches, takes or releases something.

MolmoAct's traces lead to the end of the episode. Here a trace leads to the next change of the gripper, where the hand
has something to do, so that its end names the object.
"""

import numpy as np

from vla_model.observation import along
from vla_training.data.shards import LINE

START = 0.6  # [s] from the start, or after a change, in which a change of the gripper does not end a trace
SHORTEST = 0.02  # of the image's edge: a trace of less is a rest, and unknown


def ends(gripper: np.ndarray, seconds: float) -> np.ndarray:
    """Return the frame at which the trace of each frame ends, (T,) int64: the next change, or the last frame.

    gripper: set-points (T,); those above the middle of their range are open. seconds: between two frames.
    """
    is_open = gripper > (gripper.min() + gripper.max()) / 2
    changes, before = list[int](), -1
    for i in (np.flatnonzero(np.diff(is_open)) + 1).tolist():
        if i - before > START / seconds:
            changes.append(i)
            before = i
    found, out = [*changes, len(gripper) - 1], np.empty(len(gripper), np.int64)
    for i in range(len(gripper)):
        out[i] = next((k for k in found if k > i), len(gripper) - 1)
    return out


def line(places: np.ndarray) -> np.ndarray | None:
    """Return LINE points (LINE, 2) along the places (n, 2) in shares of the view; None for a rest.

    Points outside the view are at its edge.
    """
    inside = np.clip(places, 0.0, 1.0)
    if np.linalg.norm(np.diff(inside, axis=0), axis=1).sum() < SHORTEST:
        return None
    return along(inside, LINE)


def disturbed(points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a line as a person may draw it, (LINE, 2) in shares of the view.

    It begins somewhat later, may be straighter, has two to five corners, and is some pixels off.
    """
    begin = rng.uniform(0.0, 0.3) if rng.random() < 0.3 else 0.0
    at = np.linspace(begin, 1.0, LINE) * (LINE - 1)
    kept = np.column_stack([np.interp(at, np.arange(LINE), column) for column in points.T])
    corners = along(kept, int(rng.integers(2, 6)))
    corners = corners + rng.normal(0.0, 0.008, corners.shape)
    return np.clip(along(corners, LINE), 0.0, 1.0)
