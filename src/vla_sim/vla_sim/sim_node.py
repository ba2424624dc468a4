"""The simulated Franka as a ROS 2 node, with the interface of the real robot and two cameras.

Three threads: physics (also publishes joint states, clock and frames), rendering (also publishes images), and the
executor thread of ROS (commands, reset, parameters). The node is the source of /clock; all its stamps are
simulation time.
"""

import functools
import os
import queue
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from rcl_interfaces.msg import SetParametersResult
from rclpy.parameter import Parameter
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, Image, JointState
from std_msgs.msg import Bool, Float64MultiArray, String
from tf2_msgs.msg import TFMessage

from vla_msgs.msg import Episode
from vla_msgs.srv import ResetEpisode
from vla_policy_node.ros import qos
from vla_policy_node.ros.camera_info import camera_info_topic
from vla_policy_node.ros.chunk_msg import to_ns, to_time
from vla_policy_node.ros.image_msg import image_msg
from vla_policy_node.ros.parameters import declare, declare_profile
from vla_policy_node.ros.qos_mismatch import ReportsQosMismatch
from vla_policy_node.ros.run import run
from vla_sim import messages
from vla_sim.commander import Commander
from vla_sim.controller import DAMPING, STIFFNESS, Gains
from vla_sim.pacer import Pacer
from vla_sim.rendering.memory import return_large_blocks
from vla_sim.tasks import TASKS, check_task

if TYPE_CHECKING:
    from vla_sim.rendering.cameras import Snapshot

_BATCH = 5  # physics steps of 1 ms between two checks of due messages
_ENGAGE = 0.2  # [rad] largest distance of the first set-point from the arm after a reset


@dataclass
class _Reset:
    """A request of ~/reset and its result, between the executor thread and the physics thread."""

    task: str
    seed: int
    asked: str  # instruction; empty: that of the seed
    done: threading.Event = field(default_factory=threading.Event)
    error: str = ''
    instruction: str = ''


class _Due:
    """Returns whether a periodic message is due in simulation time."""

    def __init__(self, rate: float) -> None:
        self._period, self._next = round(1e9 / rate), 0

    def __call__(self, now: int) -> bool:
        if now < self._next:
            return False
        self._next = max(self._next + self._period, now - self._period // 2)
        return True


class SimNode(ReportsQosMismatch):
    """The simulator node, see the module. The exception of a thread ends the node."""

    def __init__(self, name: str = 'sim', **kwargs) -> None:
        super().__init__(name, **kwargs)
        self._profile = declare_profile(self)
        self._declare()
        os.environ['MUJOCO_GL'] = self._gl_backend  # see opengl.py
        from vla_sim.assets.robot import ARM_JOINTS, BASE, FINGER_JOINTS, urdf_text
        from vla_sim.rendering.render_thread import RenderThread
        from vla_sim.scene import CAMERAS
        from vla_sim.world import World

        if self._profile.joint_names != ARM_JOINTS or self._profile.gripper_joint_names != FINGER_JOINTS:
            raise ValueError(f'the simulator is a Panda with joints {", ".join(ARM_JOINTS)}: use its robot profile')
        self._make_world = functools.partial(World, gains=self._gains)
        self._base, self._joints = BASE, (*ARM_JOINTS, *FINGER_JOINTS)
        self._read_cameras(CAMERAS)
        self._advertise(urdf_text())
        self._world = self._make_world(self._task, image_size=self._image_size)
        self._world.reset(self._seed)
        self._episodes, self._engaged, self._judgement = 0, True, (False, '', '')
        self._resets: queue.SimpleQueue[_Reset] = queue.SimpleQueue()
        self._pacer = Pacer(self._real_time_factor)
        self._commander = Commander()
        self._ending = threading.Event()
        self._failure: BaseException | None = None
        self._renderer = RenderThread(CAMERAS, self._image_size, self._shadows, self._publish_images)
        self._renderer.prepare(self._world.model)
        if self._renderer.failure is not None:
            raise self._renderer.failure
        self._subscribe()
        self._physics = threading.Thread(target=self._run_physics, name='physics', daemon=True)
        self._physics.start()

    # ---- set-up
    def _declare(self) -> None:
        def fixed(name: str, default: Any, about: str, **limits: Any) -> Any:
            return declare(self, name, default, about, read_only=True, **limits)

        self._real_time_factor = declare(
            self, 'real_time_factor', 1.0, 'simulated seconds per second; 0: as fast as possible', low=0.0, high=100.0
        )
        self._task = fixed('task', TASKS[0], 'task of the first episode', choices=TASKS)
        self._seed = fixed('seed', 0, 'seed of the first episode', low=0, high=2**62)
        self._camera_rate = fixed('camera_rate', 10.0, 'images per second', low=0.1, high=60.0)
        self._joint_rate = fixed('joint_state_rate', 100.0, 'joint states per second', low=1.0, high=200.0)
        self._clock_rate = fixed('clock_rate', 100.0, '/clock messages per second', low=1.0, high=200.0)
        self._image_size = fixed('image_size', 256, 'edge of the square images [pixel]', low=16, high=1024)
        self._shadows = fixed('shadows', False, 'draw shadows: slow without a graphics card')
        platform = os.environ.get('MUJOCO_GL', 'egl')
        choices = ('egl', 'osmesa', 'glfw')
        self._gl_backend = fixed('gl_backend', platform, 'OpenGL platform that MuJoCo renders with', choices=choices)
        self._gains = Gains(
            np.array(fixed('gains.stiffness', STIFFNESS.tolist(), 'joint impedance [Nm/rad] (robot profile)')),
            np.array(fixed('gains.damping', DAMPING.tolist(), 'joint impedance [Nm s/rad] (robot profile)')),
        )
        self._topics = {
            key: fixed(f'topics.{key}', default, about + ' (robot profile)')
            for key, default, about in (
                ('joint_states', 'joint_states', 'measured joints'),
                ('joint_command', 'target_joint', 'input of the joint controller'),
                ('gripper_command', 'gripper/gripper_position_controller/commands', 'input of the gripper'),
            )
        }

    def _read_cameras(self, known: tuple[str, ...]) -> None:
        lists = {
            key: declare(self, key, list(default), about + ' (robot profile)', read_only=True)
            for key, default, about in (
                ('cameras', known, 'names of the cameras'),
                ('camera_topics', [f'{name}/image_raw' for name in known], 'image topic of each camera'),
                ('camera_frames', [f'{name}_camera_optical_frame' for name in known], 'optical frame of each camera'),
            )
        }
        names = lists['cameras']
        if unknown := [name for name in names if name not in known]:
            raise ValueError(f'the simulator has no camera {", ".join(unknown)}; it has {", ".join(known)}')
        if not len(names) == len(lists['camera_topics']) == len(lists['camera_frames']):
            raise ValueError('cameras, camera_topics and camera_frames of the robot profile must have one entry each')
        self._camera_topics = dict(zip(names, lists['camera_topics'], strict=True))
        self._camera_frames = dict(zip(names, lists['camera_frames'], strict=True))
        self._enabled = {
            name: declare(self, f'camera_enabled.{name}', True, f'false: the {name} camera is unplugged')
            for name in names
        }

    def _advertise(self, urdf: str) -> None:
        self._joint_states = self.create_publisher(JointState, self._topics['joint_states'], qos.SENSOR_OUT)
        self._clock_out = self.create_publisher(Clock, '/clock', qos.SENSOR_OUT)
        self._tf = self.create_publisher(TFMessage, '/tf', qos.STATUS)
        self._tf_static = self.create_publisher(TFMessage, '/tf_static', qos.LATCHED)
        self._objects = self.create_publisher(TFMessage, '~/objects', qos.SENSOR_OUT)
        self._episode = self.create_publisher(Episode, '~/episode', qos.LATCHED)
        self._instruction = self.create_publisher(String, '~/task', qos.LATCHED)
        self._success_out = self.create_publisher(Bool, '~/success', qos.LATCHED)
        self._missed_out = self.create_publisher(String, '~/missed', qos.LATCHED)
        self._wrong_out = self.create_publisher(String, '~/wrong_object', qos.LATCHED)
        self._description = self.create_publisher(String, 'robot_description', qos.LATCHED)
        self._description.publish(String(data=urdf))
        self._images = {n: self.create_publisher(Image, t, qos.SENSOR_OUT) for n, t in self._camera_topics.items()}
        self._infos = {
            name: self.create_publisher(CameraInfo, camera_info_topic(topic), qos.SENSOR_OUT)
            for name, topic in self._camera_topics.items()
        }

    def _subscribe(self) -> None:
        self.create_subscription(JointState, self._topics['joint_command'], self._on_target, qos.COMMAND)
        self.create_subscription(Float64MultiArray, self._topics['gripper_command'], self._on_gripper, qos.COMMAND)
        self.create_service(ResetEpisode, '~/reset', self._on_reset)
        self.add_on_set_parameters_callback(self._on_parameters)
        self.create_timer(0.2, self._watch)
        self._commanders = 1

    # ---- executor thread
    def _watch(self) -> None:
        failure = self._failure or self._renderer.failure
        if failure is not None:
            raise failure
        self._commanders = self.count_publishers(self._topics['joint_command'])

    def _on_target(self, msg: JointState) -> None:
        refused = {'throttle_duration_sec': 2.0}
        self._commander.sent(to_ns(msg.header.stamp), self._world.time_ns)
        if self._commanders > 1:  # rule of crisp_controllers: competing publishers are not followed
            text = (
                f'{self._commanders} publishers on {self._topics["joint_command"]}: none is followed, stop all but one'
            )
            self.get_logger().error(text, **refused)
            return
        positions = np.array(msg.position)
        far = 0.0
        if not self._engaged and positions.shape == (len(self._profile.joint_names),):
            far = float(np.abs(positions - self._world.joint_positions).max())
            self._engaged = far <= _ENGAGE
        if not self._engaged:
            self.get_logger().info(  # no fault: the executor soon starts again at the position of the arm
                f'set-points not followed: after the reset they are {far:.2f} rad from the arm; start again '
                f'within {_ENGAGE} rad of the measured joints',
                **refused,
            )
            return
        try:
            self._world.set_target(positions, np.array(msg.velocity))
        except ValueError as error:
            self.get_logger().error(f'set-point refused: {error}', **refused)

    def _on_gripper(self, msg: Float64MultiArray) -> None:
        if len(msg.data) != 1 or not np.isfinite(msg.data[0]):
            text = f'gripper command refused: one finite number 0 closed .. 1 open needed, got {list(msg.data)}'
            self.get_logger().error(text, throttle_duration_sec=2.0)
            return
        self._world.set_gripper(float(msg.data[0]) * self._profile.gripper_max_opening)

    def _on_reset(self, request: ResetEpisode.Request, response: ResetEpisode.Response) -> ResetEpisode.Response:
        reset = _Reset(request.task or self._world.task, request.seed, request.instruction)
        try:
            check_task(reset.task)
        except ValueError as error:
            response.message = str(error)
            return response
        self._resets.put(reset)
        if not reset.done.wait(20.0):
            reset.error = 'the physics thread does not answer'
        response.success, response.message, response.instruction = not reset.error, reset.error, reset.instruction
        return response

    def _on_parameters(self, parameters: list[Parameter]) -> SetParametersResult:
        for parameter in parameters:
            if parameter.name == 'real_time_factor':
                self._pacer.factor = float(parameter.value)
            elif parameter.name.startswith('camera_enabled.'):
                self._enabled[parameter.name.removeprefix('camera_enabled.')] = bool(parameter.value)
        return SetParametersResult(successful=True)

    # ---- physics thread
    def _run_physics(self) -> None:
        try:
            joints_due, clock_due, cameras_due = (
                _Due(rate) for rate in (self._joint_rate, self._clock_rate, self._camera_rate)
            )
            self._begin_episode()
            self._pacer.restart()
            while not self._ending.is_set() and self._renderer.failure is None:
                self._take_resets()
                if not self._commander.wait(self._world.time_ns):
                    self._pacer.restart()
                self._world.step(_BATCH)
                now = self._world.time_ns
                if clock_due(now):
                    self._clock_out.publish(Clock(clock=to_time(now)))
                if joints_due(now):
                    self._publish_joints()
                if cameras_due(now):
                    self._publish_frames()
                    self._request_images()
                if self._judge() != self._judgement:
                    self._publish_judgement()
                self._pacer.wait(_BATCH * 1e-3)
                self._report_pace()
        except BaseException as error:
            self._failure = error

    def _take_resets(self) -> None:
        while not self._resets.empty():
            reset = self._resets.get()
            try:
                if reset.task != self._world.task:
                    world = self._make_world(reset.task, image_size=self._image_size, time_ns=self._world.time_ns)
                    world.reset(reset.seed, reset.asked)
                    self._renderer.prepare(world.model)
                    self._world = world
                else:
                    self._world.reset(reset.seed, reset.asked)
            except ValueError as error:
                reset.error = str(error)
            else:
                reset.instruction = self._world.instruction
                self._engaged = False
                self._begin_episode()
            reset.done.set()
            self._pacer.restart()

    def _begin_episode(self) -> None:
        world, stamp = self._world, to_time(self._world.time_ns)
        self._episodes += 1
        self._publish_joints()
        msg = Episode(index=self._episodes, task=world.task, seed=world.seed, instruction=world.instruction)
        msg.header.stamp, msg.header.frame_id = stamp, self._base
        self._publish_judgement()
        self._publish_frames()
        if 'front' in self._camera_frames:
            frame = messages.transform(stamp, self._base, self._camera_frames['front'], world.camera_pose('front'))
            self._tf_static.publish(TFMessage(transforms=[frame]))
        self._episode.publish(msg)
        self._instruction.publish(String(data=world.instruction))
        self.get_logger().info(f'episode {self._episodes}: {world.task}, seed {world.seed}: {world.instruction}')

    def _judge(self) -> tuple[bool, str, str]:
        return self._world.success(), self._world.missed(), self._world.wrong_object()

    def _publish_judgement(self) -> None:
        success, missed, wrong = self._judgement = self._judge()
        self._success_out.publish(Bool(data=success))
        self._missed_out.publish(String(data=missed))
        self._wrong_out.publish(String(data=wrong))

    def _publish_joints(self) -> None:
        world = self._world
        fingers = world.finger_state
        arm = (world.joint_positions, world.joint_velocities, world.joint_efforts)
        values = [np.concatenate(pair) for pair in zip(arm, fingers, strict=True)]
        self._joint_states.publish(messages.joint_state(to_time(world.time_ns), self._joints, *values))

    def _publish_frames(self) -> None:
        world, stamp = self._world, to_time(self._world.time_ns)
        frames = [messages.transform(stamp, *link) for link in world.link_poses()]
        if 'wrist' in self._camera_frames:
            wrist = world.camera_pose('wrist')
            frames.append(messages.transform(stamp, self._base, self._camera_frames['wrist'], wrist))
        self._tf.publish(TFMessage(transforms=frames))
        objects = [messages.transform(stamp, self._base, name, pose) for name, pose in world.objects().items()]
        self._objects.publish(TFMessage(transforms=objects))

    def _request_images(self) -> None:
        names = tuple(name for name, enabled in self._enabled.items() if enabled)
        if names:  # at full speed physics waits for the images, so that they are not late
            self._renderer.offer(self._world.model, self._world.snapshot(), names, wait=self._pacer.factor <= 0)

    def _report_pace(self) -> None:
        achieved = self._pacer.achieved()
        if achieved is None:
            return
        dropped, self._renderer.dropped = self._renderer.dropped, 0
        waited, self._commander.waited = self._commander.waited, 0.0
        wanted = self._pacer.factor
        if wanted > 0 and achieved < 0.98 * wanted:
            self.get_logger().warning(
                f'physics cannot keep up: real-time factor {achieved:.2f} of {wanted:.2f} over the last 10 s; '
                f'{waited:.1f} s of them it waited for late set-points'
            )
        if dropped:
            self.get_logger().warning(
                f'rendering cannot keep up: {dropped} sets of images left out in the last 10 s; lower camera_rate, '
                'image_size or shadows'
            )

    # ---- render thread
    def _publish_images(self, snapshot: 'Snapshot', images: dict[str, np.ndarray]) -> None:
        stamp = to_time(snapshot.time_ns)
        for name, pixels in images.items():
            frame = self._camera_frames[name]
            self._images[name].publish(image_msg(stamp, frame, pixels))
            self._infos[name].publish(messages.camera_info(stamp, frame, self._world.camera_info(name)))

    def destroy_node(self) -> None:
        """End the threads, which publish, before the node."""
        self._ending.set()
        self._renderer.close()
        self._physics.join(10.0)
        super().destroy_node()


def main(args: list[str] | None = None) -> None:
    return_large_blocks()
    run(SimNode, args)


if __name__ == '__main__':
    main()
