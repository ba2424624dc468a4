"""The parameters of the executor node, each declared once, and the adapters that they choose."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rclpy.node import Node

from vla_core.kinematics.description import joint_limits, narrowed
from vla_core.motion.chunk_blending import STRATEGIES, ChunkBlending
from vla_core.motion.executor import ChunkExecutor, ExecutorConfig
from vla_core.profile import RobotProfile
from vla_policy_node.adapters.gripper_action import franka_hand, gripper_command
from vla_policy_node.adapters.gripper_position import GripperPosition
from vla_policy_node.adapters.joint_controller import JointController, Target
from vla_policy_node.adapters.table import ADAPTERS
from vla_policy_node.executor.collision_parameters import make_collision_monitor
from vla_policy_node.ros.parameters import declare, declare_profile, refuse_renamed
from vla_policy_node.ros.robot_description import read_description

if TYPE_CHECKING:
    from vla_core.kinematics.collision_monitor import CollisionMonitor

_RENAMED = {'guard.': 'collision_monitor.', 'seams': 'blending'}  # former name -> name now
# Fields of ExecutorConfig: meaning and range.
_MOTION = (
    ('velocity_fraction', 'largest speed of a joint, as a fraction of its limit', 0.01, 1.0),
    ('acceleration_fraction', 'largest acceleration on a path, as a fraction of the limit', 0.05, 1.0),
    ('brake_fraction', 'acceleration that braking may add, as a fraction of the limit', 0.05, 1.0),
    ('smoothing_time', 'set-points are the average of the planned motion over this time at least [s]', 0.0, 0.1),
    ('tool_speed_limit', 'largest speed of the tool, where its kinematics are known [m/s]', 0.01, 3.0),
    ('start_distance_limit', 'a first chunk that starts further from the resting arm is refused [rad]', 0.01, 7.0),
    ('start_fraction', 'speed and acceleration of ~/go_to_start, as a fraction of the limits', 0.01, 1.0),
    ('seam_time', 'shortest time over which a switch of chunks is smoothed [s]', 0.02, 2.0),
    ('max_lag', 'delay behind the schedule of the chunk above which the arm brakes [s]', 0.05, 5.0),
    ('joint_state_max_age', 'age of the joint state above which the arm holds [s]', 0.01, 5.0),
    (
        'tracking_limit',
        'tracking error above which a joint is blocked: let go, hold where it is [rad]',
        0.01,
        3.0,
    ),
    ('tracking_delay', 'delay with which the arm may follow its set-points [s]', 0.01, 1.0),
    ('future_tolerance', 'largest time by which the stamp of a chunk may be in the future [s]', 0.0, 5.0),
)


@dataclass(frozen=True)
class ExecutorParameters:
    """Parameters of the executor node, read when it is configured."""

    profile: RobotProfile
    monitor: 'CollisionMonitor | None'
    config: ExecutorConfig
    blending: ChunkBlending
    joint_topic: str
    controller: str
    joint_command: str
    controller_node: str
    require_controller: bool
    controller_manager: str
    gripper: str
    gripper_topic: str
    gripper_scale: float
    gripper_speed: float
    gripper_force: float
    chunk_max_age: float
    robot_state: str

    @classmethod
    def of(cls, node: Node) -> 'ExecutorParameters':
        """Declare and read all parameters. Raises ValueError naming a missing or wrong one."""

        def number(name: str, default: float, about: str, low: float, high: float) -> float:
            return declare(node, name, default, about, low=low, high=high)

        refuse_renamed(node, _RENAMED)
        profile, monitor = _robot(node)
        controller = declare(
            node, 'controller', 'crisp', 'adapter for the messages of the joint controller', choices=tuple(ADAPTERS)
        )
        return cls(
            profile=profile,
            monitor=monitor,
            config=_config(node, ADAPTERS[controller].load().releases_within_acceleration),
            blending=_blending(node, profile),
            joint_topic=declare(node, 'topics.joint_states', 'joint_states', 'measured joints (JointState)'),
            controller=controller,
            joint_command=declare(node, 'topics.joint_command', 'target_joint', 'input of the joint controller'),
            controller_node=declare(
                node, 'controller_node', '',
                'node that must subscribe to topics.joint_command; empty: any but recorders and introspection tools',
            ),
            require_controller=declare(
                node, 'require_controller', True, 'false: set-points may be sent without a subscriber (for tests)'
            ),
            controller_manager=declare(
                node, 'controller_manager', 'controller_manager',
                'controller manager of ros2_control: its controllers must be active, and ~/recover activates them',
            ),
            gripper=declare(
                node, 'gripper', 'position', 'adapter for the messages of the gripper',
                choices=('position', 'gripper_command', 'franka', 'none'),
            ),
            gripper_topic=declare(
                node, 'topics.gripper_command', 'gripper/gripper_position_controller/commands',
                'input of the gripper: topic, 0 closed .. 1 open; action of gripper_command; for franka the '
                'prefix of /grasp and /move',
            ),
            gripper_scale=number(
                'gripper_scale', 0.5, 'gripper_command: position per opening; half with two fingers', 0.01, 100.0
            ),
            gripper_speed=number('gripper_speed', 0.1, 'franka: speed of the fingers [m/s]', 0.001, 0.5),
            gripper_force=number('gripper_force', 30.0, 'franka, gripper_command: largest force [N]', 0.1, 200.0),
            chunk_max_age=number(
                'chunk_max_age', 3.0, 'age of the observation above which its chunk is not executed [s]', 0.05, 60.0
            ),
            robot_state=declare(
                node, 'topics.robot_state', '',
                'FrankaRobotState of franka_robot_state_broadcaster; empty: the mode of the robot is not watched',
            ),
        )  # fmt: skip

    def make_controller(self, node: Node, core: ChunkExecutor) -> JointController:
        """Return the adapter that `controller` names."""
        rate = 1.0 / self.config.period
        target = Target(self.joint_command, self.profile.joint_names, rate, core.course, self.controller_node)
        return ADAPTERS[self.controller].load()(node, target)

    def make_gripper(self, node: Node) -> Any:
        """Return the adapter that `gripper` names, or None. Raises ValueError naming a missing package."""
        largest = self.profile.gripper_max_opening
        if not self.profile.gripper_joint_names or self.gripper == 'none':
            return None
        if self.gripper == 'gripper_command':
            return gripper_command(node, self.gripper_topic, largest, self.gripper_scale, self.gripper_force)
        if self.gripper == 'franka':
            return franka_hand(node, self.gripper_topic, largest, self.gripper_speed, self.gripper_force)
        return GripperPosition(node, self.gripper_topic, largest)


def _config(node: Node, release_within_acceleration: bool) -> ExecutorConfig:
    default, values = ExecutorConfig(), {}
    for name, about, low, high in _MOTION:
        values[name] = float(declare(node, name, getattr(default, name), about, low=low, high=high))
    kinds = ('cubic', 'monotone')
    rate = declare(node, 'rate', 100.0, 'set-points per second', low=20.0, high=1000.0)
    return ExecutorConfig(
        period=1.0 / rate,
        interpolation=declare(node, 'interpolation', 'cubic', 'between the steps of a chunk', choices=kinds),
        release_within_acceleration=release_within_acceleration,
        **values,
    )


def _blending(node: Node, profile: RobotProfile) -> ChunkBlending:
    strategy = declare(
        node, 'blending', 'inpaint', 'strategy of chunk blending, see docs/explanation/chunk-blending.md',
        choices=STRATEGIES,
    )  # fmt: skip
    steps = declare(
        node, 'execute_horizon', 0,
        'largest number of steps of a chunk that are executed before the next one arrives; 0: all',
        low=0, high=1000,
    )  # fmt: skip
    band = float(
        declare(
            node,
            'gripper_band',
            0.01,
            'width of the band around half open in which an opening has no vote [m]',
            low=0.0,
            high=0.1,
        )
    )
    return ChunkBlending(
        strategy,
        execute_horizon=steps,
        fade_time=float(
            declare(node, 'fade_time', 0.3, 'duration of the transition of cross_fade [s]', low=0.01, high=5.0)
        ),
        old_weight=float(declare(node, 'old_weight', 0.3, 'weight of the old chunk in weighted', low=0.0, high=1.0)),
        decay=float(
            declare(
                node,
                'ensemble_decay',
                0.01,
                'decay of the weights of temporal_ensemble per chunk',
                low=-10.0,
                high=10.0,
            )
        ),
        gripper_threshold=profile.gripper_max_opening / 2,
        gripper_band=band,
    )


def _robot(node: Node) -> tuple[RobotProfile, 'CollisionMonitor | None']:
    """Return the profile, with narrower limits if limits_from asks for them, and the collision monitor or None."""
    profile = declare_profile(node)
    source = declare(
        node, 'limits_from', 'profile',
        'joint limits: those of the robot profile, or the narrower of them and those of the robot description',
        choices=('profile', 'robot_description'),
    )  # fmt: skip
    monitored = declare(
        node, 'collision_monitor.enabled', False,
        'stop before the arm touches itself or leaves its workspace, limit the tool speed',
    )  # fmt: skip
    wanted = ['limits_from'] * (source != 'profile') + ['collision_monitor.enabled'] * monitored
    if not wanted:
        return profile, None
    urdf = read_description(node, *wanted)
    if source != 'profile':
        profile, notes = narrowed(profile, joint_limits(urdf, profile.joint_names))
        for note in notes:
            node.get_logger().warning(note)
    return profile, make_collision_monitor(node, profile, urdf) if monitored else None
