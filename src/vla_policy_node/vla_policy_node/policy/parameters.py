"""The parameters of the policy node, each declared once."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rclpy.node import Node
from rclpy.parameter import Parameter

from vla_core.observe.action_prefix import INPAINT, MAX_DEVIATION
from vla_core.observe.cadence import RATE
from vla_core.observe.stall import STALL_FRACTION
from vla_core.observe.streams import CAMERA_MAX_AGE, GRIPPER, GRIPPER_MAX_AGE, JOINT_MAX_AGE, JOINTS
from vla_core.profile import RobotProfile
from vla_model.checkpoints.shipped import RANDOM
from vla_model.loading import LoadOptions
from vla_policy_node.policy.outputs.collection import declare_outputs
from vla_policy_node.policy.session import CHANGES, NEW_EPOCH
from vla_policy_node.ros.parameters import declare, declare_profile, refuse_renamed
from vla_policy_node.ros.robot_description import declare_description

_RENAMED = {  # former name -> name now
    'inpaint_away': 'prefix_max_deviation',
    'stagnation': 'stall_fraction',
    'estimate': 'action_decoding',
}


@dataclass(frozen=True)
class PolicyParameters:
    """What is read when the node is configured. Ages in s, sizes in pixel (0: any), rates in Hz."""

    profile: RobotProfile
    cameras: dict[str, str]  # name -> image topic
    joint_topic: str
    gripper_topic: str
    image_width: int
    image_height: int
    camera_max_age: float
    joint_max_age: float
    gripper_max_age: float
    rate: float
    inpaint: str
    prefix_max_deviation: float
    stall_fraction: float
    instruction_max_length: int
    instruction_change: str
    steer_max_age: float
    model: str
    device: str
    dtype: str
    engine: str
    image_dtype: str
    image_engine: str
    action_decoding: str
    action_head: str
    threads: int
    seed: int
    outputs: Mapping[str, Any]  # name of an output -> its settings
    lockstep: bool

    @property
    def load_options(self) -> LoadOptions:
        """How the model is loaded."""
        return LoadOptions(
            device=self.device,
            dtype=self.dtype,
            threads=self.threads,
            seed=self.seed,
            engine=self.engine,
            image_dtype=self.image_dtype,
            image_engine=self.image_engine,
            action_decoding=self.action_decoding,
            action_head=self.action_head,
            gripper=bool(self.profile.gripper_joint_names),
        )

    @classmethod
    def of(cls, node: Node) -> 'PolicyParameters':
        """Declare and read all. Raises ValueError naming the parameter that is missing or wrong."""
        refuse_renamed(node, _RENAMED)
        profile = declare_profile(node)
        names = declare(node, 'cameras', Parameter.Type.STRING_ARRAY, 'names of the cameras, as the model knows them')
        topics = declare(node, 'camera_topics', Parameter.Type.STRING_ARRAY, 'image topic of each camera')
        if not names or len(names) != len(topics) or len({*names, JOINTS, GRIPPER}) != len(names) + 2:
            raise ValueError(
                f'cameras must be one at least, distinct and not {JOINTS!r} or {GRIPPER!r}, and camera_topics as many: '
                f'got {list(names)} and {list(topics)}'
            )
        declare_drive(node)
        declare_description(node)  # read where the model needs it: what there is to set does not depend on the model
        return cls(
            profile=profile,
            cameras=dict(zip(names, topics, strict=True)),
            joint_topic=declare(node, 'topics.joint_states', 'joint_states', 'measured joints (JointState)'),
            gripper_topic=declare(
                node, 'topics.gripper_joint_states', 'joint_states', 'measured finger joints; may be the same topic'
            ),
            image_width=declare(node, 'image_width', 0, 'expected width [pixel]; 0: any', low=0, high=16384),
            image_height=declare(node, 'image_height', 0, 'expected height [pixel]; 0: any', low=0, high=16384),
            camera_max_age=declare(
                node,
                'camera_max_age',
                CAMERA_MAX_AGE,
                'with an older image there is no inference [s]',
                low=0.01,
                high=10.0,
            ),
            joint_max_age=declare(
                node,
                'joint_max_age',
                JOINT_MAX_AGE,
                'with an older joint state there is no inference [s]',
                low=0.005,
                high=10.0,
            ),
            gripper_max_age=declare(
                node,
                'gripper_max_age',
                GRIPPER_MAX_AGE,
                'with an older state of the fingers there is no inference [s]; at least three periods of their topic',
                low=0.005,
                high=10.0,
            ),
            rate=declare(
                node,
                'rate',
                RATE,
                'most inferences per second of observation time [Hz]; what a chunk begins with must be carried out, or '
                'a model that sees no velocities begins for ever',
                low=0.1,
                high=200.0,
            ),
            inpaint=declare(
                node,
                'inpaint',
                'auto',
                'whether the model is given the steps that the arm is about to do, and goes on from them; auto: where '
                'the checkpoint has learned it',
                choices=INPAINT,
            ),
            prefix_max_deviation=declare(
                node,
                'prefix_max_deviation',
                MAX_DEVIATION,
                'the model gets no action prefix while a joint is further than this from its place in the last chunk '
                '[rad]',
                low=0.01,
                high=7.0,
            ),
            stall_fraction=declare(
                node,
                'stall_fraction',
                STALL_FRACTION,
                'the arm is stalled below this fraction of the way of its chunk of a horizon ago; it then executes '
                'half of the newest chunk before the next inference; 0: no stall detection',
                low=0.0,
                high=0.9,
            ),
            instruction_max_length=declare(
                node, 'instruction_max_length', 200, 'longer instructions are refused [characters]', low=1, high=10000
            ),
            instruction_change=declare(
                node,
                'instruction_change',
                NEW_EPOCH,
                'what other words do to a motion under way: new_epoch: the arm comes to rest, then follows them; '
                'seamless: the next chunk follows them and continues the motion; supersede: as seamless, and goals '
                'that run end',
                choices=CHANGES,
            ),
            steer_max_age=declare(
                node,
                'steer_max_age',
                30.0,
                'a trace on ~/steer or of a goal steers the model until the image that it was drawn on is older than '
                'this [s]',
                low=1.0,
                high=3600.0,
            ),
            model=declare(
                node, 'model', RANDOM, 'checkpoint folder, URL of a policy server (ws://HOST:PORT), or random-nano'
            ),
            device=declare(node, 'device', 'cpu', 'what the model runs on: cpu, cuda, cuda:1'),
            dtype=declare(
                node,
                'dtype',
                'auto',
                'number format of the network',
                choices=('auto', 'float32', 'bfloat16', 'float16'),
            ),
            engine=declare(
                node,
                'engine',
                'auto',
                'what runs the network: eager, cuda-graph, tensorrt, openvino-float32, openvino-bfloat16, '
                'openvino-int8; auto: the fastest here whose results are close to those of eager. All but eager are '
                'tried in a child process first',
            ),
            image_dtype=declare(
                node,
                'image_dtype',
                'auto',
                'number format of the image encoder, int8 with openvino only; auto: float32, or with image_engine auto '
                'what is fastest',
                choices=('auto', 'float32', 'bfloat16', 'float16', 'int8'),
            ),
            image_engine=declare(
                node,
                'image_engine',
                'auto',
                'what runs the image encoder; compile needs a C++ compiler, openvino is for CPUs; auto: the fastest '
                'here but compile, whose codes are close to those of eager in float32',
                choices=('auto', 'eager', 'compile', 'openvino'),
            ),
            action_decoding=declare(
                node,
                'action_decoding',
                'median',
                'value taken from the probabilities of a set-point: the median, or the mode (the most probable value)',
                choices=('median', 'mode'),
            ),
            action_head=declare(
                node,
                'action_head',
                'auto',
                'source of set-points: the probabilities of bins (discrete), or regression (continuous) where the '
                'model has such a head; auto: that of its config.json',
                choices=('auto', 'discrete', 'continuous'),
            ),
            threads=declare(node, 'threads', 0, 'CPU threads of the model; 0: as torch has it', low=0, high=256),
            seed=declare(node, 'seed', 0, 'seed of random weights', low=0, high=2**31 - 1),
            outputs=declare_outputs(node),
            lockstep=declare(
                node,
                'lockstep',
                False,
                'a player of bags drives clock and messages: the node acknowledges each message on ~/ack, and may '
                'let the clock stand',
            ),
        )


def declare_drive(node: Node) -> bool:
    """Whether the node drives the arm. Read when the node is activated, not when it is configured."""
    return declare(node, 'drive', False, 'false: shadow, chunks never move the arm; read when activated')
