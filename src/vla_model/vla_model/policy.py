"""The contract of every policy: an observation in, a prediction out. Importing this costs no torch.

Users of a policy import its types from here and load it with `loading.load`. A new family of policies is a class with
these methods and a row of the table in loading.py, see docs/how-to/add-a-policy-family.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar, cast

import numpy as np

from vla_model.types import JOINTS, TOOL, Chunk, DepthMap, Observation, Trace

T = TypeVar('T')
T_co = TypeVar('T_co', covariant=True)

# Names of outputs, see PolicyInfo.outputs.
PLAN, IMAGE, POINTS, TRACE, DEPTH, WORLD = 'plan', 'image', 'points', 'trace', 'depth', 'world'


@dataclass(frozen=True)
class PolicyInfo:
    """Identity, inputs and outputs of a policy. It is constant for the life of the policy."""

    model_id: str  # of exactly these weights, as it is recorded with every chunk
    trained: bool  # False: random weights, which may drive a simulator only
    cameras: tuple[str, ...]  # names of its images in Observation.images, in its order
    dof: int  # joints of the arm
    horizon: int  # steps of a chunk
    dt: float  # [s] between two steps
    gripper: bool = False  # state and action end with the opening [m]
    gripper_opening: float = 0.0  # [m] largest opening that it commands; 0: unknown
    joint_names: tuple[str, ...] = ()  # of the arm, in its order; empty: any of dof joints
    name: str = ''  # of the model, the same for all its weights
    action_space: str = 'joint_position'  # of its actions: one of config.ACTION_SPACES, joint_velocity of a server
    state_dim: int = 0  # numbers of its state; 0: joints and gripper
    action_dim: int = 0  # numbers of a step in action_space, with the gripper; 0: joints and gripper
    outputs: frozenset[str] = frozenset()  # beside the chunk; see the names above
    predicted: frozenset[str] = frozenset({POINTS})  # those that come with each Prediction; `start` computes the others
    points: int = 0  # grounding points per view: objects of the instruction that a prediction locates
    point_bins: int = 0  # resolution of a grounding point along an edge of the view [bins]; 0: continuous
    takes_prefix: bool = False  # `act` can continue a given action prefix
    learned_prefix: bool = False  # the policy was trained to continue an action prefix
    steers: bool = False  # `act` follows Observation.steering
    history: float = 0.0  # [s]: its prompt has the images of this time before, see Observation.before; 0: it has not
    needs_tool: bool = False  # the observation must have the pose of the tool
    picture_size: int = 0  # [px] side of its square input and predicted images; 0: unknown

    @property
    def joints(self) -> bool:
        """Whether its chunks are joint set-points, which a controller can execute."""
        return self.space == JOINTS

    @property
    def space(self) -> str:
        """The space of its chunks, see Chunk.space."""
        return JOINTS if self.action_space.startswith('joint') else TOOL

    @property
    def arm_dim(self) -> int:
        """Numbers of a step of a chunk without the gripper."""
        return (self.action_dim - self.gripper) if self.action_dim else self.dof


@dataclass(frozen=True)
class Prediction:
    """The result of `act`: a chunk, and the outputs that are decoded with it."""

    chunk: Chunk  # its confidence is per step
    # Grounding points (views, points, 2), in the order of the objects in the instruction: x and y in shares of the edge
    # of the view, which is padded to a square.
    points: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 2)))
    trace: Trace | None = None  # the predicted way of the tool, from its present place on
    depth: DepthMap | None = None
    # Distance of the chunks of two action heads per step, (horizon,): mean over the arm's numbers, whose range has the
    # length 2. (0,): the policy has one head.
    disagreement: np.ndarray = field(default_factory=lambda: np.zeros(0))
    timings: Mapping[str, float] = field(default_factory=dict)  # [s] part of the computation -> time; may be empty


@dataclass(frozen=True)
class PlanOptions:
    """How PLAN is decoded."""

    length: int = 0  # limit of the text [tokens]; 0: the length in training
    steps: int = 0  # limit of the forwards; 0: the number in config.json
    threshold: float | None = None  # 0..1: each forward commits all tokens of at least this probability
    cached: bool = False  # compute keys and values of the prompt once: faster, approximate


@dataclass(frozen=True)
class ImageOptions:
    """How IMAGE is decoded."""

    steps: int = 18  # forwards
    guidance: float = 0.0  # weight of classifier-free guidance by the instruction; 0: none
    cached: bool = False  # compute keys and values of the prompt once: faster, approximate


@dataclass(frozen=True)
class WorldOptions:
    """The actions for which WORLD predicts images, and how these are decoded."""

    chunk: Chunk  # of info.horizon steps in info.space that follow the observation
    after: int = 0  # steps of the chunk after which the images are predicted; 0: after all of them
    steps: int = 0  # forwards; 0: the number in config.json
    cached: bool = False  # compute keys and values of the prompt once: faster, approximate
    # Joint set-points [rad] and opening [m] after these steps, (dof + gripper,): for a chunk of the space TOOL, which
    # `adapt_to_robot` converts from joints.
    target: np.ndarray | None = None


@dataclass(frozen=True)
class DepthOptions:
    """How DEPTH is decoded."""

    steps: int = 1  # forwards
    cached: bool = False  # compute keys and values of the prompt once: faster, approximate


Options = PlanOptions | ImageOptions | WorldOptions | DepthOptions


class Job(Protocol, Generic[T_co]):
    """Computes an output in steps, which fit between two calls of `act`."""

    @property
    def result(self) -> T_co | None:
        """A Plan for PLAN, PredictedImage for IMAGE, PredictedViews for WORLD, DepthMap for DEPTH.

        None until the last step is done.
        """

    def step(self) -> bool:
        """Do one step, which takes no longer than a call of `act`. Return True when the job is done."""


class Policy(Protocol):
    """Turns observations into chunks: a network in this process, or the client of a remote one.

    Threads: a policy is not thread-safe. One thread at a time calls its methods and steps its jobs. The thread that
    loads it also warms it up; then one worker thread uses it. `info` is constant and may be read from any thread.
    `close` is called once, after the worker has ended, and is the last call.

    Methods raise ValueError naming a wrong argument, and RuntimeError or OSError where the computation fails. The
    policy can be called again after each of these errors.
    """

    @property
    def info(self) -> PolicyInfo: ...

    def prepare(self, instruction: str) -> None:
        """Prepare `act` for a new instruction, before its first observation. This may take half a second.

        Raises ValueError for an instruction that the policy cannot use.
        """

    def act(self, observation: Observation, prefix: Chunk | None = None) -> Prediction:
        """Return the chunk that follows `observation`: info.horizon steps in info.space.

        prefix: the first d < horizon steps, which the robot executes in any case; only where info.takes_prefix. Its
        space is info.space, and its step i is due at t_ref + (i + 1) dt. The prefix conditions the later steps. The
        chunk starts with it unchanged, with confidence 1 and frozen = d.
        """

    def start(self, output: str, observation: Observation, options: Options | None = None) -> Job[Any]:
        """Return a job that computes an output of info.outputs. options: of this output; None: the defaults.

        WORLD needs WorldOptions. Raises ValueError naming an output that the policy does not have, see `no_output`.
        """

    def warm_up(self) -> None:
        """Allocate buffers and compile for later calls. Run each output that will be used once before this call."""

    def example(self, grey: int = 128) -> Observation:
        """Return an observation that the policy accepts: images of a grey level, 0 to 255, the arm in mid-range."""

    def close(self) -> None:
        """End processes and connections, and free memory."""


def finish(job: Job[T]) -> T:
    """Do the remaining steps of a job, and return its result."""
    while not job.step():
        pass
    return cast(T, job.result)


def no_output(info: PolicyInfo, output: str) -> ValueError:
    """Return the error of `start` for an output that the policy does not have."""
    has = ', '.join(sorted(info.outputs - info.predicted)) or 'none'
    return ValueError(f'model {info.model_id} has no output {output!r} that can be started; it has: {has}')
