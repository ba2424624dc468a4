"""Normalisation constants and meaning of the numbers, per released checkpoint. The reference has them in its code."""

import numpy as np

from vla_model.families.rynnvla.tokens import Scale


def _scale(low: list[float], high: list[float]) -> Scale:
    return Scale(np.array(low), np.array(high))


# LIBERO: translation and rotation inputs of an operational-space controller, gripper -1 open to +1 closed.
# VLA prompts and their answers have the first scale, actions in world-model prompts of pre-tokenised data the second.
LIBERO_ACTION = _scale(
    [-0.9375, -0.9375, -0.9375, -0.24214286, -0.375, -0.36428571, -1.0],
    [0.9375, 0.9375, 0.9375, 0.34821429, 0.375, 0.375, 1.0],
)
LIBERO_WORLD_ACTION = _scale(
    [-0.9375, -0.9375, -0.9375, -0.32571429, -0.375, -0.375, -1.0], [0.9375, 0.9375, 0.9375, 0.375, 0.375, 0.375, 1.0]
)
# LIBERO: position [m] and axis-angle [rad] of the tool in the base frame, positions of the two fingers [m].
LIBERO_STATE = _scale(
    [-0.4827807, -0.3309336, 0.00812818, 1.00279467, -3.63125079, -1.84273835, -0.00545302, -0.04201502],
    [0.210313803, 0.39042644, 1.47277813, 3.72486417, 3.56188956, 1.3863216, 0.0423214189, 0.00131260958],
)
# SO100: degrees. Actions of joints 0 to 4 are relative to the state of the observation, the gripper is absolute.
SO100_ACTION = _scale(
    [-27.33398438, -27.24609375, -56.60156250, -51.50390625, -70.13671875, -9.07504368],
    [31.20117188, 29.44335938, 34.89257812, 45.87890625, 62.31445312, 74.56647491],
)
SO100_STATE = _scale(
    [-88.68164062, 24.16992188, -8.70117188, -59.06250000, -161.01562500, -2.15053773],
    [73.47656250, 193.27148438, 182.46093750, 101.60156250, 172.61718750, 68.23027802],
)
# LIBERO: what an action of 1 asks its controller for, [m] and [rad]; and the distance [m] along the hand's z axis from
# the tool centre point of a Panda to the point whose position is in the state.
LIBERO_INPUT = np.array([0.05, 0.05, 0.05, 0.5, 0.5, 0.5])
LIBERO_TOOL = -0.0069
