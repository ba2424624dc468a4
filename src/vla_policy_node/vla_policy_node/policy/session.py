"""The session: the instruction in force, the executor's epoch and the committed actions. No ROS node."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vla_core.observe.action_prefix import action_prefix
from vla_core.observe.committed_actions import CommittedActions
from vla_core.observe.stall import STALL_FRACTION, StallDetector
from vla_core.observe.streams import Aligned
from vla_model.policy import Prediction
from vla_model.types import Chunk
from vla_msgs.msg import ExecutorStatus
from vla_policy_node.policy.executor_monitor import ExecutorMonitor

CHANGES = NEW_EPOCH, SEAMLESS, SUPERSEDE = ('new_epoch', 'seamless', 'supersede')
STATUS_DELAY = 0.1  # [s] of wall time after which the executor's status shows the effect of a stop request


@dataclass(eq=False)
class Assignment:
    """An instruction from when it comes into force until another does. The same words again are another assignment."""

    instruction: str


@dataclass(frozen=True)
class Answer:
    """A chunk, with the observation and the assignment that it answers."""

    assignment: Assignment
    aligned: Aligned
    epoch: int  # of the executor, when the observation was taken
    prediction: Prediction
    inference_time: float  # [s] start of act -> chunk ready
    waited: float  # [s] of wall time, observation complete -> start of act
    skipped: int  # complete sets passed over since the answer before

    @property
    def chunk(self) -> Chunk:
        """The chunk of the prediction."""
        return self.prediction.chunk


@dataclass(frozen=True)
class Outgoing:
    """A message to the executor."""

    chunk: Chunk | None  # None: a stop request
    t_ref: int  # [ns]
    epoch: int
    sequence: int
    shadow: bool  # published, and never executed
    instruction: str = ''
    inference_time: float = 0.0  # [s]


class Session:
    """Keeps what the policy follows now and what was sent for it, from activation to activation.

    Threads. The spin thread owns the life of the session: `open`, `activate`, `put`, `halt`, `record`, `deactivate`,
    `close`. The worker thread, which runs the model, calls `current`, `stalled`, `prefix`, `deliver` and `fail`. Every
    method takes `lock`, so the other thread sees each as one step. A caller that needs several in one step
    holds `lock` around them; it is reentrant. An example is publishing a result only while its assignment is in force.
    Do not wait and do not run the model while holding it. The listeners are called under it, in the caller's thread.

    changed: listeners to the instruction that comes into force, '' for none. delivered: listeners to each chunk sent,
    called with the answer, its sequence and its latency [s] from t_ref. failed: listeners to a failure of the model,
    called with one sentence, and with the exception unless the inference before failed, too.
    requested: names of the outputs that a goal asks for, whether or not their topics have subscribers.
    """

    def __init__(self, source: str, now: Callable[[], int]) -> None:
        """source: the node's name as the sender of chunks. now: gives the time of the node's clock [ns]."""
        self.lock = threading.RLock()
        self.changed: list[Callable[[str], None]] = []
        self.delivered: list[Callable[[Answer, int, float], None]] = []
        self.failed: list[Callable[[str, Exception | None], None]] = []
        self.requested: frozenset[str] = frozenset()
        self.active = self.drive = False
        self.sequence = 0  # of the newest message; it never restarts, because it must grow within an epoch
        self.failure = ''  # of the newest inference, one sentence
        self._source, self._now = source, now
        self._assignment: Assignment | None = None
        self._stopped: float | None = None  # [s] monotonic time of the newest stop request, until the arm rests
        self.close()

    # ---- life, in the spin thread

    def open(
        self,
        send: Callable[[Outgoing], None],
        *,
        change: str = NEW_EPOCH,
        max_deviation: float | None = None,
        stall_fraction: float = STALL_FRACTION,
    ) -> None:
        """Start with a new model. The executor's status is kept.

        send: publishes a message. change: the effect of other words on a motion under way, one of CHANGES.
        max_deviation: see action_prefix [rad]; None for a model that takes no prefix.
        stall_fraction: see StallDetector.
        """
        with self.lock:
            self._send, self.change, self._max_deviation = send, change, max_deviation
            self._committed = CommittedActions()
            self._stall = StallDetector(self._committed, stall_fraction)
            self.failure = ''

    def activate(self, drive: bool) -> None:
        """From now on instructions are followed. drive: the chunks move the arm; else they are sent as shadow."""
        with self.lock:
            self.active, self.drive, self.failure = True, drive, ''
            self._committed.followed = drive  # in shadow another source moves the arm

    def deactivate(self) -> None:
        """From now on no message is sent. Call `halt` before."""
        with self.lock:
            self.active = False

    def close(self) -> None:
        """Forget the model and the executor."""
        with self.lock:
            self.executor_monitor = ExecutorMonitor(self._source)
            self.open(lambda _: None)

    # ---- instructions and the executor, in the spin thread

    @property
    def instruction(self) -> str:
        """The instruction in force; '' for none."""
        with self.lock:
            return self._assignment.instruction if self._assignment is not None else ''

    def put(self, instruction: str) -> bool:
        """Put an instruction in force. Returns False where the same words are in force, which changes nothing.

        With `change` supersede the same words are a new assignment. With new_epoch the arm is stopped before.
        """
        with self.lock:
            before = self._assignment
            if before is not None and before.instruction == instruction and self.change != SUPERSEDE:
                return False
            if before is not None and self.change == NEW_EPOCH:
                self._request_stop()
            self._assign(Assignment(instruction))
            return True

    def halt(self) -> None:
        """Put no instruction in force, and stop the arm where this node drives it."""
        with self.lock:
            self._assign(None)
            self._request_stop()

    def record(self, status: ExecutorStatus) -> None:
        """Record the executor's newest status."""
        with self.lock:
            self.executor_monitor.record(status)
            self._committed.followed = self.drive and self.executor_monitor.follows
            refused = status.last_verdict not in (ExecutorStatus.ACCEPTED, ExecutorStatus.REJECT_SHADOW)
            self._committed.reported(status.sequence, refused)

    # ---- from both threads

    @property
    def comes_to_rest(self) -> bool:
        """Whether the arm must rest before it follows the instruction in force, and does not rest yet."""
        with self.lock:
            if self._stopped is None or self.change != NEW_EPOCH:
                return False
            # A status from before the stop request arrived may still show an arm at rest that was about to move.
            if time.monotonic() - self._stopped > STATUS_DELAY and self.executor_monitor.rests:
                self._stopped = None
            return self._stopped is not None

    def current(self) -> tuple[Assignment | None, int]:
        """The assignment to act on, and the executor's epoch. The assignment is None while the arm comes to rest.

        Take both with the observation: the executor then refuses a chunk whose arm began to brake meanwhile.
        """
        with self.lock:
            return None if self.comes_to_rest else self._assignment, self.executor_monitor.epoch

    # ---- in the worker thread

    def stalled(self, t_ref: int, epoch: int, measured: np.ndarray) -> bool:
        """Whether the arm is to execute its chunk without another inference, see StallDetector.stalled."""
        with self.lock:
            return self._stall.stalled(t_ref, epoch, measured)

    def prefix(self, t_ref: int, epoch: int, measured: np.ndarray) -> Chunk | None:
        """The committed actions that the next chunk must start with, see action_prefix; None for none."""
        with self.lock:
            if self._max_deviation is None:
                return None
            return action_prefix(self._committed, t_ref, epoch, measured, self._max_deviation)

    def deliver(self, answer: Answer) -> bool:
        """Send the chunk. Returns False, and sends nothing, where its assignment is no longer in force."""
        with self.lock:
            if answer.assignment is not self._assignment:
                return False
            t_ref, instruction = answer.aligned.t_ref, answer.assignment.instruction
            self._publish(answer.chunk, t_ref, answer.epoch, instruction, answer.inference_time)
            latency = (self._now() - t_ref) * 1e-9
            self._committed.add(self.sequence, answer.chunk, t_ref, answer.epoch, latency)
            self.failure = ''
            for listener in self.delivered:
                listener(answer, self.sequence, latency)
            return True

    def fail(self, assignment: Assignment, error: Exception) -> None:
        """Record that the model failed; nothing where the assignment is no longer in force."""
        with self.lock:
            if assignment is not self._assignment:
                return
            first, self.failure = not self.failure, f'inference failed, trying again: {error}'
            for listener in self.failed:
                listener(self.failure, error if first else None)

    # ---- under the lock

    def _assign(self, assignment: Assignment | None) -> None:
        self._assignment, self.failure = assignment, ''
        for listener in self.changed:
            listener(assignment.instruction if assignment is not None else '')

    def _request_stop(self) -> None:
        if self.active and self.drive:
            self._publish(None, self._now(), self.executor_monitor.epoch)
            self._stopped = time.monotonic()

    def _publish(
        self, chunk: Chunk | None, t_ref: int, epoch: int, instruction: str = '', inference_time: float = 0.0
    ) -> None:
        self.sequence += 1
        self._send(Outgoing(chunk, t_ref, epoch, self.sequence, not self.drive, instruction, inference_time))
