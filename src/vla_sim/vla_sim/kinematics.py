"""Forward and inverse kinematics of the tool centre point on a MuJoCo model. No ROS."""

from collections.abc import Sequence

import numpy as np

from vla_core.kinematics import ik
from vla_sim.rendering.opengl import mujoco


class IKError(ValueError):
    """No joint position within the limits reaches the pose."""


def tool_down(yaw: float) -> np.ndarray:
    """Return the rotation (3, 3) of a tool that points down, with its x axis at `yaw` [rad] in the base's x-y plane.

    The fingers of a Franka hand open along the tool's y axis, the direction yaw - pi / 2.
    """
    c, s = np.cos(yaw), np.sin(yaw)
    return np.array([[c, s, 0.0], [s, -c, 0.0], [0.0, 0.0, -1.0]])


class Kinematics:
    """Kinematics of one serial arm. Poses are of `tool_body` in the world frame of the model. Not thread-safe."""

    def __init__(
        self,
        model: mujoco.MjModel,
        joint_names: Sequence[str],
        tool_body: str,
        *,
        lower: np.ndarray,
        upper: np.ndarray,
        home: np.ndarray,
        margin: float = 0.05,
    ) -> None:
        """lower, upper, home: (dof,) [rad] in the order of joint_names. margin: kept from both limits [rad].

        Raises ValueError naming the joint or body that the model lacks.
        """
        kinds = ((mujoco.mjtObj.mjOBJ_JOINT, list(joint_names)), (mujoco.mjtObj.mjOBJ_BODY, [tool_body]))
        for kind, names in kinds:
            missing = [name for name in names if mujoco.mj_name2id(model, kind, name) < 0]
            if missing:
                raise ValueError(f'the model has no {", ".join(missing)}: the robot profile is of another robot')
        self.model, self.data = model, mujoco.MjData(model)
        joints = [model.joint(name).id for name in joint_names]
        self._qpos, self._dof = model.jnt_qposadr[joints], model.jnt_dofadr[joints]
        self._tool = model.body(tool_body).id
        self.lower, self.upper = np.asarray(lower) + margin, np.asarray(upper) - margin
        self.home = np.asarray(home, float)
        self._jacobian = np.zeros((6, model.nv))

    def forward(self, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return position (3,) [m] and rotation (3, 3) of the tool at joint positions q (dof,) [rad]."""
        self.data.qpos[self._qpos] = q
        mujoco.mj_kinematics(self.model, self.data)
        return self.data.xpos[self._tool].copy(), self.data.xmat[self._tool].reshape(3, 3).copy()

    def __call__(self, q: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return position and rotation as `forward`, and the Jacobian (6, dof) at q (dof,) [rad].

        It gives tool velocity [m/s] and angular velocity [rad/s], both in the base frame, per joint velocity.
        """
        position, rotation = self.forward(q)
        mujoco.mj_comPos(self.model, self.data)
        mujoco.mj_jacBody(self.model, self.data, self._jacobian[:3], self._jacobian[3:], self._tool)
        return position, rotation, self._jacobian[:, self._dof]

    def inverse(
        self,
        position: np.ndarray,
        rotation: np.ndarray,
        start: np.ndarray,
        *,
        rest: np.ndarray | None = None,
        iterations: int = 100,
    ) -> np.ndarray:
        """Return joint positions (dof,) [rad] with the tool at `position` (3,) [m] and `rotation` (3, 3).

        Of the solutions near `start` it returns the one nearest to `rest` (default: home): along a smooth path of poses
        the result is smooth, too. Raises IKError with the remaining error above 0.1 mm or 0.2 mrad.
        """
        rest = self.home if rest is None else rest
        q, off, tilt = ik.solve(self, position, rotation, start, rest, self.lower, self.upper, iterations, enough=0.0)
        if off > 1e-4 or tilt > 2e-4:
            raise IKError(
                f'the tool cannot reach position {np.round(position, 3).tolist()} m: '
                f'{off * 1e3:.1f} mm and {np.degrees(tilt):.1f} degrees are left at the joint limits'
            )
        return q
