"""Simulated episodes one after another: arm, controller, gripper and props. No ROS."""

import numpy as np

from vla_sim.assets.props import CAP_TRAVEL, resting_height
from vla_sim.assets.robot import ARM_JOINTS, BASE, FINGER_JOINTS, HOME, MAX_OPENING, TOOL, TORQUE_LIMIT
from vla_sim.controller import Gains, JointImpedance
from vla_sim.rendering.cameras import Appearance, CameraInfo, Cameras, Snapshot, camera_info
from vla_sim.rendering.opengl import mujoco
from vla_sim.scene import CAMERAS, TIMESTEP, build_model
from vla_sim.tasks import sample_episode, task_of
from vla_sim.tasks.episode import Episode, Placement, SceneState
from vla_sim.tasks.referee import Referee

GRIPPER_SPEED = 0.15  # [m/s] of the opening; the Franka hand does at most 0.2
_CHECK_EVERY = 10  # physics steps between two updates of the success test
_PARKED = np.array([4.0, -1.0, -0.70])  # [m] position of unused props, on the floor behind the front camera

Pose = tuple[np.ndarray, np.ndarray]  # position (3,) [m] and orientation (4,) wxyz, base frame


class World:
    """The simulated Franka at its table. One thread steps it; any thread may call set_target and set_gripper.

    All poses are in the robot's base frame, z up, table top at z = 0.
    """

    def __init__(
        self,
        task: str,
        *,
        image_size: int = 256,
        shadows: bool = False,
        time_ns: int = 0,
        gains: Gains | None = None,
    ) -> None:
        """Build the scene of a task and start episode 0. time_ns: initial simulation time [ns].

        image_size [pixel] and shadows are settings of the cameras. gains None: those of crisp_controllers. Raises
        ValueError for an unknown task.
        """
        self.model = build_model(task)
        self.image_size, self.shadows = image_size, shadows
        self.task, self._task = task, task_of(task)
        self._data = mujoco.MjData(self.model)
        self._nominal = Appearance.of(self.model)
        self._start_ns, self._steps = time_ns, 0
        arm = [self.model.joint(name) for name in ARM_JOINTS]
        self._q = slice(int(arm[0].qposadr[0]), int(arm[0].qposadr[0]) + 7)
        self._v = slice(int(arm[0].dofadr[0]), int(arm[0].dofadr[0]) + 7)
        fingers = [self.model.joint(name) for name in FINGER_JOINTS]
        self._finger_q = [int(joint.qposadr[0]) for joint in fingers]
        self._finger_v = [int(joint.dofadr[0]) for joint in fingers]
        self._gripper = self.model.actuator('gripper').id
        self._tool = self.model.body(TOOL).id
        links = [i for i in range(self.model.nbody) if self.model.body_rootid[i] == self.model.body(BASE).id]
        self._base, self._last_link = links[0], links[-1]
        self._controller = JointImpedance(TORQUE_LIMIT, TIMESTEP, gains)
        self.reset(0)

    # ---- the episode
    def reset(self, seed: int, instruction: str = '') -> None:
        """Start the episode of this seed: arm at home, gripper open, all bodies at rest; time continues.

        instruction: replaces that of the seed, see tasks.sample_episode. Raises ValueError for a negative seed, or an
        instruction of another task.
        """
        self.episode: Episode = sample_episode(self.task, seed, instruction)
        data = self._data
        mujoco.mj_resetData(self.model, data)
        self._place_props()
        self._jitter_appearance()
        data.qpos[self._q] = HOME + self.episode.joint_offset
        data.qpos[self._finger_q] = MAX_OPENING / 2
        data.ctrl[self._gripper] = self._opening_target = MAX_OPENING
        self._controller.reset(data.qpos[self._q])
        mujoco.mj_forward(self.model, data)
        self._success = self._task.success_test(self.episode.goal)
        self._referee = Referee(self.episode.goal, self._scene_state())

    def put_arm(self, q: np.ndarray, opening: float) -> bool:
        """Move the arm at rest to q (7,) [rad] with a gripper opening [m], at the start of an episode.

        Returns False without a motion if the arm would touch itself or an object.
        """
        data, limit = self._data, self._opening_target
        before = data.qpos.copy()
        data.qpos[self._q], data.qpos[self._finger_q] = q, opening / 2
        mujoco.mj_forward(self.model, data)
        if clear := not self._arm_touches():
            data.ctrl[self._gripper] = self._opening_target = opening
            self._controller.reset(data.qpos[self._q])
        else:
            data.qpos[:], self._opening_target = before, limit
            mujoco.mj_forward(self.model, data)
        return clear

    def _arm_touches(self) -> bool:
        links = range(self._base, self._last_link + 1)
        body = self.model.geom_bodyid
        return any(body[a] in links or body[b] in links for a, b in self._data.contact.geom[: self._data.ncon])

    @property
    def seed(self) -> int:
        return self.episode.seed

    @property
    def instruction(self) -> str:
        return self.episode.instruction

    def success(self) -> bool:
        """Whether the goal is reached (of a button: was reached once)."""
        return self._success.reached

    def wrong_object(self) -> str:
        """First action on an object that the instruction does not name, as a sentence; empty: none. See Referee."""
        return self._referee.wrong

    def missed(self) -> str:
        """The first stage of the task that was not reached; empty: success."""
        return '' if self.success() else self._referee.missed

    # ---- time
    @property
    def time_ns(self) -> int:
        """Simulation time [ns]; never decreases."""
        return self._start_ns + self._steps * round(TIMESTEP * 1e9)

    def step(self, n: int = 1) -> None:
        """Advance by n physics steps of 1 ms, each with one step of the controller."""
        data, ctrl = self._data, self._data.ctrl
        q, v, bias = data.qpos[self._q], data.qvel[self._v], data.qfrc_bias[self._v]  # views
        travel = GRIPPER_SPEED * TIMESTEP
        for _ in range(n):
            ctrl[:7] = self._controller.torque(q, v, bias)
            ctrl[self._gripper] += min(max(self._opening_target - ctrl[self._gripper], -travel), travel)
            mujoco.mj_step(self.model, data)
            self._steps += 1
            if self._steps % _CHECK_EVERY == 0:
                state = self._scene_state()
                self._success.update(state, _CHECK_EVERY * TIMESTEP)
                self._referee.update(state, _CHECK_EVERY * TIMESTEP)
        # mj_step leaves the poses before its last integration; readers need those after it.
        mujoco.mj_kinematics(self.model, data)
        mujoco.mj_camlight(self.model, data)

    # ---- the robot
    def set_target(self, positions: np.ndarray, velocities: np.ndarray | None = None) -> None:
        """Set joint set-points (7,) [rad] and velocities (7,) [rad/s], held until the next.

        Raises ValueError for a wrong length or a value that is not finite; the set-points before stay in force.
        """
        self._controller.set_target(positions, velocities)

    def set_gripper(self, opening: float) -> None:
        """Set the wanted opening [m], clipped to the range of the hand. Raises ValueError if it is not finite."""
        if not np.isfinite(opening):
            raise ValueError(f'gripper opening is not finite: {opening}')
        self._opening_target = float(min(max(opening, 0.0), MAX_OPENING))

    @property
    def joint_positions(self) -> np.ndarray:
        """Joint positions, (7,) [rad]."""
        return self._data.qpos[self._q].copy()

    @property
    def joint_velocities(self) -> np.ndarray:
        """Joint velocities, (7,) [rad/s]."""
        return self._data.qvel[self._v].copy()

    @property
    def joint_efforts(self) -> np.ndarray:
        """Torques of the motors, (7,) [Nm]."""
        return self._data.qfrc_actuator[self._v].copy()

    @property
    def finger_state(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Positions [m], velocities [m/s] and forces [N] of the two finger joints, (2,) each."""
        data = self._data
        return data.qpos[self._finger_q], data.qvel[self._finger_v], data.qfrc_actuator[self._finger_v]

    @property
    def gripper_opening(self) -> float:
        """Opening between the fingers [m]."""
        return float(self._data.qpos[self._finger_q].sum())

    def tool_pose(self) -> Pose:
        """Pose of the tool centre point, z out of the hand."""
        return self.body_pose(TOOL)

    def body_pose(self, name: str) -> Pose:
        """Return the pose of a body by its name in the model."""
        body = self._data.body(name)
        return body.xpos.copy(), body.xquat.copy()

    def link_poses(self) -> list[tuple[str, str, Pose]]:
        """Return (parent, child, pose of child in parent) for every link except the base, as in the URDF."""
        poses = []
        for body in range(self._base + 1, self._last_link + 1):
            parent = int(self.model.body_parentid[body])
            poses.append((self.model.body(parent).name, self.model.body(body).name, self._relative(parent, body)))
        return poses

    # ---- privileged
    def objects(self) -> dict[str, Pose]:
        """Return the poses of the props of the episode.

        Block, produce: centre; bowl, button: middle of the bottom; `<colour>_button_cap`: middle of the cap's top.
        """
        poses = {p.name: self.body_pose(p.slot) for p in self.episode.placements}
        if self._task.has_buttons:
            poses |= {f'{p.name}_cap': self.body_pose(f'{p.slot}_cap') for p in self.episode.placements}
        return poses

    # ---- cameras
    def cameras(self) -> Cameras:
        """Return a renderer of this world's snapshots for the calling thread, which must close it."""
        return Cameras(self.model, CAMERAS, self.image_size, self.shadows)

    def camera_info(self, name: str) -> CameraInfo:
        """Return the intrinsics of a camera, 'front' or 'wrist'."""
        return camera_info(self.model, name, self.image_size)

    def camera_pose(self, name: str) -> Pose:
        """Return the pose of the camera's optical frame: x right, y down, z forward."""
        camera = self._data.camera(name)
        quat = np.zeros(4)
        # MuJoCo's camera has y up and looks along -z: half a turn about x.
        mujoco.mju_mat2Quat(quat, (camera.xmat.reshape(3, 3) * [1.0, -1.0, -1.0]).ravel())
        return camera.xpos.copy(), quat

    def snapshot(self) -> Snapshot:
        """Return a copy of the state for Cameras.render, which may run in another thread beside `step`."""
        data = self._data
        return Snapshot(self.time_ns, data.qpos.copy(), data.mocap_pos.copy(), data.mocap_quat.copy(), self._appearance)

    # ---- inside
    def _relative(self, parent: int, child: int) -> Pose:
        data, position, quat = self._data, np.zeros(3), np.zeros(4)
        inverse = (np.zeros(3), np.zeros(4))
        mujoco.mju_negPose(*inverse, data.xpos[parent], data.xquat[parent])
        mujoco.mju_mulPose(position, quat, *inverse, data.xpos[child], data.xquat[child])
        return position, quat

    def _place_props(self) -> None:
        for i, slot in enumerate(self._task.parked):
            self._put(slot, _PARKED + np.array([0.0, 0.3 * i, 0.0]), 0.0)
        for p in self.episode.placements:
            # Slightly above the table, so that contact starts from outside.
            self._put(p.slot, np.array([p.x, p.y, resting_height(_kind(p)) + 0.0003]), p.yaw)

    def _put(self, slot: str, position: np.ndarray, yaw: float) -> None:
        quat = np.array([np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2)])
        body = self.model.body(slot)
        mocap = int(body.mocapid[0])
        if mocap >= 0:
            self._data.mocap_pos[mocap], self._data.mocap_quat[mocap] = position * [1, 1, 0], quat
        else:
            start = int(self.model.jnt_qposadr[body.jntadr[0]])
            self._data.qpos[start : start + 7] = [*position, *quat]

    def _jitter_appearance(self) -> None:
        model, episode = self.model, self.episode
        self._nominal.apply(model)
        for p in episode.placements:
            if p.rgb is not None:
                model.geom(f'{p.slot}_tint').rgba = [*p.rgb, 1.0]
        for name, jitter in episode.cameras.items():
            camera = model.camera(name)
            turn, quat = np.zeros(4), np.zeros(4)
            angle = float(np.linalg.norm(jitter.rotation))
            mujoco.mju_axisAngle2Quat(turn, jitter.rotation / angle, angle)
            mujoco.mju_mulQuat(quat, turn, camera.quat)
            camera.pos, camera.quat = camera.pos + jitter.offset, quat
        model.light_diffuse[:] = np.clip(model.light_diffuse * episode.light, 0, 1)
        direction = model.light_dir[0] + episode.light_direction
        model.light_dir[0] = direction / np.linalg.norm(direction)
        self._appearance = Appearance.of(model)

    def _scene_state(self) -> SceneState:
        model, data = self.model, self._data
        positions, speeds, presses = {}, {}, {}
        for p in self.episode.placements:
            body = model.body(p.slot)
            positions[p.name] = data.xpos[body.id]
            if self._task.has_buttons:
                presses[p.name] = float(-data.joint(p.slot).qpos[0] / CAP_TRAVEL)
            else:
                start = int(body.dofadr[0])
                speeds[p.name] = float(np.linalg.norm(data.qvel[start : start + 3]))
        return SceneState(positions, speeds, presses, data.xpos[self._tool], self.gripper_opening)


def _kind(placement: Placement) -> str:
    return placement.slot.split('_')[0]
