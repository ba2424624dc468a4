"""Forward and inverse kinematics of the tool centre point on a MuJoCo model. No ROS."""

from collections.abc import Sequence

import numpy as np

from vla_sim.rendering.opengl import mujoco


class IKError(ValueError):
    """No joint position within the limits reaches the pose."""


def tool_down(yaw: float) -> np.ndarray:
    """(3, 3) rotation of a tool that points straight down; its x axis lies at `yaw` [rad] in the base's x-y plane.

    The fingers of a Franka hand open along the tool's y axis, that is along the direction yaw - pi / 2.
    """
    c, s = np.cos(yaw), np.sin(yaw)
    return np.array([[c, s, 0.0], [s, -c, 0.0], [0.0, 0.0, -1.0]])


def rotation_vector(rotation: np.ndarray) -> np.ndarray:
    """(3,) axis times angle [rad] of a (3, 3) rotation matrix."""
    quat, vector = np.empty(4), np.empty(3)
    mujoco.mju_mat2Quat(quat, np.ascontiguousarray(rotation).reshape(9))
    mujoco.mju_quat2Vel(vector, quat, 1.0)
    return vector


def rotation_matrix(vector: np.ndarray) -> np.ndarray:
    """(3, 3) rotation matrix of a (3,) rotation vector [rad]."""
    angle = float(np.linalg.norm(vector))
    quat, matrix = np.empty(4), np.empty(9)
    mujoco.mju_axisAngle2Quat(quat, vector / angle if angle > 0 else np.array([0.0, 0.0, 1.0]), angle)
    mujoco.mju_quat2Mat(matrix, quat)
    return matrix.reshape(3, 3)


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
        """Position (3,) [m] and rotation (3, 3) of the tool at joint positions q (dof,) [rad]."""
        self.data.qpos[self._qpos] = q
        mujoco.mj_kinematics(self.model, self.data)
        return self.data.xpos[self._tool].copy(), self.data.xmat[self._tool].reshape(3, 3).copy()

    def jacobian(self, q: np.ndarray) -> np.ndarray:
        """(6, dof): tool velocity [m/s] and angular velocity [rad/s], both in the base frame, per joint velocity."""
        self.forward(q)
        return self._jacobian_here()

    def _jacobian_here(self) -> np.ndarray:
        mujoco.mj_comPos(self.model, self.data)
        mujoco.mj_jacBody(self.model, self.data, self._jacobian[:3], self._jacobian[3:], self._tool)
        return self._jacobian[:, self._dof]

    def inverse(
        self,
        position: np.ndarray,
        rotation: np.ndarray,
        start: np.ndarray,
        *,
        rest: np.ndarray | None = None,
        iterations: int = 100,
    ) -> np.ndarray:
        """Joint positions (dof,) [rad] that put the tool at `position` (3,) [m] with `rotation` (3, 3).

        Among the solutions near `start` it takes the one nearest to `rest` (default: home), so along a smooth pose
        path with a smooth rest the result is smooth too. Levenberg-Marquardt with the damping of Sugihara (2011,
        "Solvability-unconcerned inverse kinematics"), null-space pull to rest, joints held inside the limits.
        Raises IKError with the remaining error when it does not come within 0.1 mm and 0.2 mrad.
        """
        rest = self.home if rest is None else rest
        q = np.clip(start, self.lower, self.upper)
        for _ in range(iterations):
            at, turned = self.forward(q)
            error = np.concatenate([position - at, rotation_vector(rotation @ turned.T)])
            jacobian = self._jacobian_here()
            damped = jacobian @ jacobian.T + (0.5 * float(error @ error) + 1e-9) * np.eye(6)
            null = np.clip(rest, self.lower, self.upper) - q
            move = jacobian.T @ np.linalg.solve(damped, error - jacobian @ null) + null
            if (
                beyond := (q + move < self.lower) | (q + move > self.upper)
            ).any():  # those stop, the others do their work
                stopped = np.where(beyond, np.clip(q + move, self.lower, self.upper) - q, 0.0)
                free, null = jacobian * ~beyond, np.where(beyond, 0.0, null)
                damped = free @ free.T + (0.5 * float(error @ error) + 1e-9) * np.eye(6)
                move = free.T @ np.linalg.solve(damped, error - jacobian @ stopped - free @ null) + null + stopped
            step = np.clip(q + np.clip(move, -0.3, 0.3), self.lower, self.upper) - q
            if np.abs(step).max() < 1e-7:
                break
            q = q + step
        at, turned = self.forward(q)
        off, tilt = np.linalg.norm(position - at), np.linalg.norm(rotation_vector(rotation @ turned.T))
        if off > 1e-4 or tilt > 2e-4:
            raise IKError(
                f'the tool cannot reach position {np.round(position, 3).tolist()} m: '
                f'{off * 1e3:.1f} mm and {np.degrees(tilt):.1f} degrees are left at the joint limits'
            )
        return q
