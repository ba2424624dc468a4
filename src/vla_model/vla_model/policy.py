"""The contract of every policy: an observation in, a prediction out. Importing this costs no torch.

Whoever uses a policy imports its types from here, and gets one from `loading.load`. Whoever adds a kind of policy
writes a class with these methods and a row of a table there, see docs/how-to/add-a-policy-family.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar, cast

import numpy as np

from vla_model.types import JOINTS, TOOL, Chunk, Observation

T = TypeVar('T')
T_co = TypeVar('T_co', covariant=True)

# Names of outputs, see PolicyInfo.outputs.
PLAN, IMAGE, POINTS = 'plan', 'image', 'points'


@dataclass(frozen=True)
class PolicyInfo:
    """What a policy is, needs and gives. It never changes while the policy lives."""

    model_id: str  # of exactly these weights, as it is recorded with every chunk
    trained: bool  # False: random weights, which drive nothing but a simulator
    cameras: tuple[str, ...]  # that it sees, in its order; its images are under these names in Observation.images
    dof: int  # joints of the arm
    horizon: int  # steps of a chunk
    dt: float  # [s] between two steps
    gripper: bool = False  # state and action have one number more, the opening [m], last
    name: str = ''  # of the model, the same for all its weights
    action_space: str = 'joint_position'  # of its actions, one of config.ACTION_SPACES
    state_dim: int = 0  # numbers of its state; 0: joints and gripper
    action_dim: int = 0  # numbers of a step in action_space, with the gripper; 0: joints and gripper
    outputs: frozenset[str] = frozenset()  # beside the chunk: PLAN and IMAGE can be started, POINTS are in predictions
    points: int = 0  # objects of the instruction whose places are in a prediction
    point_bins: int = 0  # places along an edge of the view that `points` tell apart; 0: they are not in bins
    takes_prefix: bool = False  # `act` can continue steps that are given
    learned_prefix: bool = False  # and was trained to
    needs_tool: bool = False  # the observation must have the pose of the tool
    picture_size: int = 0  # [px] side of the square that it sees and predicts; 0: unknown

    @property
    def joints(self) -> bool:
        """Whether its chunks are joint set-points, which a robot can be sent."""
        return self.space == JOINTS

    @property
    def space(self) -> str:
        """Of its chunks, see Chunk.space."""
        return JOINTS if self.action_space.startswith('joint') else TOOL

    @property
    def arm_dim(self) -> int:
        """Numbers of a step of a chunk without the gripper."""
        return (self.action_dim - self.gripper) if self.action_dim else self.dof


@dataclass(frozen=True)
class Prediction:
    """What `act` returns: the chunk and what came with it."""

    chunk: Chunk  # its confidence is per step
    # (views, points, 2) places in the views, in the order in which the instruction names them: x and y in shares of the
    # view, which bars have made square.
    points: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 2)))
    timings: Mapping[str, float] = field(default_factory=dict)  # [s] of parts of the work, where they are known


@dataclass(frozen=True)
class PlanOptions:
    """How PLAN is decoded."""

    length: int = 0  # most tokens; 0: as the checkpoint was trained with
    steps: int = 0  # most forwards; 0: as the checkpoint has it
    threshold: float | None = None  # 0..1: each forward keeps all tokens that are at least so probable
    cached: bool = False  # the prompt is computed once: faster, not quite the same


@dataclass(frozen=True)
class ImageOptions:
    """How IMAGE is decoded."""

    steps: int = 18  # forwards
    guidance: float = 0.0  # how much more the instruction counts than without; 0: none
    cached: bool = False  # the prompt is computed once: faster, not quite the same


Options = PlanOptions | ImageOptions


class Job(Protocol, Generic[T_co]):
    """An output that is being computed, in steps that fit between two calls of `act`."""

    @property
    def result(self) -> T_co | None:
        """A Plan for PLAN, a PredictedImage for IMAGE; None until the last step is done."""

    def step(self) -> bool:
        """One step, as long as a call of `act` or shorter. True: the job is done."""


class Policy(Protocol):
    """Whatever turns observations into chunks: a network in this process, or a client of one elsewhere.

    Threads: a policy is not thread-safe. One thread at a time calls its methods and steps its jobs: the one that loads
    it, which also warms it up, and from then on one worker. `info` never changes and may be read from any thread.
    `close` is called once, after the worker has ended, and nothing is called after it.

    Calls may raise ValueError for what they are given (it names what is wrong), and RuntimeError or an OSError where
    what computes fails. After each of these the policy can be called again.
    """

    @property
    def info(self) -> PolicyInfo: ...

    def prepare(self, instruction: str) -> None:
        """Makes `act` fast for this instruction: called when one comes into force, before the first observation.

        May take half a second. Raises ValueError for an instruction that the policy cannot take.
        """

    def act(self, observation: Observation, prefix: Chunk | None = None) -> Prediction:
        """The chunk that follows `observation`, info.horizon steps in info.space.

        prefix: the d < horizon first steps, on the same time grid (step i due at t_ref + (i + 1) dt) and in the same
        space, that the robot will execute anyway. They condition the rest, and come back as they are with confidence 1
        and frozen = d. None unless info.takes_prefix.
        """

    def start(self, output: str, observation: Observation, options: Options | None = None) -> Job[Any]:
        """Begins an output of info.outputs that is computed in steps. options: of this output; None: the usual ones.

        Raises ValueError naming the output where the policy does not have it, see `no_output`.
        """

    def warm_up(self) -> None:
        """Allocates and compiles what later calls need. Outputs that will be used must have run once before."""

    def example(self, grey: int = 128) -> Observation:
        """An observation that the policy accepts: scenes of this shade of grey, 0 to 255, the arm in mid-range."""

    def close(self) -> None:
        """Ends processes and connections, and lets memory go."""


def finish(job: Job[T]) -> T:
    """Does all steps that are left, and returns the result."""
    while not job.step():
        pass
    return cast(T, job.result)


def no_output(info: PolicyInfo, output: str) -> ValueError:
    """The error of `start` for an output that the policy does not have."""
    has = ', '.join(sorted(info.outputs - {POINTS})) or 'none'
    return ValueError(f'model {info.model_id} has no output {output!r} that can be started; it has: {has}')
