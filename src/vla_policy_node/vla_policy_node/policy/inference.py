"""The thread that owns the model: waits for a new observation, runs the policy, hands the chunk over.

Between two actions it does steps of what the schedule holds.
"""

import threading
import time
from collections.abc import Callable

import numpy as np

from vla_core.observe.cadence import Cadence
from vla_core.observe.streams import GRIPPER, JOINTS, Aligned
from vla_model.policy import Policy
from vla_model.types import JOINTS as JOINT_SPACE
from vla_model.types import Chunk, Observation, Trace
from vla_policy_node.policy.session import Answer, Assignment, Session
from vla_policy_node.policy.task_scheduler import TaskScheduler


def check_chunk(chunk: Chunk, dof: int) -> None:
    """ValueError naming what is wrong with a model's output: sizes that do not fit, values that are not finite."""
    if chunk.space != JOINT_SPACE:
        raise ValueError('the model gave actions of the tool, no joint set-points: see adapt_to_robot')
    horizon = len(chunk.positions)
    if horizon == 0 or chunk.positions.shape != (horizon, dof):
        raise ValueError(f'the model gave positions of shape {chunk.positions.shape}, must be (horizon, {dof})')
    if chunk.gripper.shape not in ((0,), (horizon,)):
        raise ValueError(f'the model gave gripper of shape {chunk.gripper.shape}, must be (0,) or ({horizon},)')
    if not (np.isfinite(chunk.positions).all() and np.isfinite(chunk.gripper).all()):
        raise ValueError('the model gave NaN or infinity: nothing is published; check the checkpoint and the dtype')
    if not (np.isfinite(chunk.dt) and chunk.dt > 0):
        raise ValueError(f'the model gave dt {chunk.dt} s, must be above 0')


def to_observation(aligned: Aligned, instruction: str, steering: Trace | None = None) -> Observation:
    """The set as the model's input. Images become contiguous here, so only those that are used are ever copied."""
    positions, velocities = aligned.values[JOINTS]
    images = {
        name: np.ascontiguousarray(value) for name, value in aligned.values.items() if name not in (JOINTS, GRIPPER)
    }
    return Observation(
        t_ref=aligned.t_ref,
        images=images,
        positions=positions,
        velocities=velocities,
        gripper=aligned.values.get(GRIPPER, 0.0),
        instruction=instruction,
        steering=steering,
        before={name: np.ascontiguousarray(value) for name, value in aligned.before.items()} or None,
    )


class Inference:
    """Runs `policy.act` in a thread of its own, once for each new reference time.

    session: gives the assignment and the committed actions, takes the chunks and the failures. After a failure the
        model is tried again in `retry` seconds.
    observe: gives the newest usable set, or None.
    scheduler: has the tasks for the gaps; its owners are what `session.current` returns.
    rate [Hz]: most inferences per second of observation time.
    steering: gives the trace to follow, or None.
    """

    def __init__(
        self,
        policy: Policy,
        dof: int,
        session: Session,
        *,
        observe: Callable[[], Aligned | None],
        scheduler: TaskScheduler,
        rate: float,
        retry: float = 1.0,
        steering: Callable[[], Trace | None] = lambda: None,
    ) -> None:
        self._policy, self._dof, self._session = policy, dof, session
        self._observe, self._scheduler = observe, scheduler
        self._cadence, self._retry, self._steering = Cadence(rate), retry, steering
        self._before: Assignment | None = None
        self._prepared: Assignment | None = None
        self._seen: int | None = None  # index of the newest set looked at
        self._wake, self._closing = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name='inference', daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Something new: an image, an assignment. Cheap, from any thread."""
        self._wake.set()

    def close(self, timeout: float = 10.0) -> bool:
        """Ends the thread; False if the model does not return in time."""
        self._closing.set()
        self._wake.set()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._closing.is_set():
            self._wake.wait(0.1)
            self._wake.clear()
            self._look()
            while not self._wake.is_set() and self._scheduler.step(self._session.current()):
                pass

    def _prepare(self, assignment: Assignment) -> bool:
        """Before anything is looked at, as it takes time; whether the model can take the instruction."""
        try:
            self._policy.prepare(assignment.instruction)
        except Exception as error:
            self._session.fail(assignment, error)
            self._closing.wait(self._retry)
            return False
        self._prepared = assignment
        return True

    def _look(self) -> None:
        """Act, if there is a set to act on."""
        owner = assignment, epoch = self._session.current()
        if assignment is None:
            self._scheduler.drop()
        elif assignment is not self._prepared and not self._prepare(assignment):
            return
        aligned = self._observe() if assignment is not None else None
        if assignment is None or aligned is None:
            self._seen = None
            return
        # Sets that came while the model was thinking; those let go for the rate were looked at.
        seen = self._seen if assignment is self._before else None
        skipped = max(aligned.index - seen - 1, 0) if seen is not None else 0
        self._seen = aligned.index
        if assignment is not self._before:
            self._before = assignment
            self._cadence.restart()
        if not self._cadence.due(aligned.t_ref):
            return
        if self._session.stalled(aligned.t_ref, epoch, aligned.values[JOINTS][0]):
            return
        self._cadence.last = aligned.t_ref
        waited, start = time.monotonic() - aligned.arrived, time.perf_counter()
        try:
            observation = to_observation(aligned, assignment.instruction, self._steering())
            prefix = self._session.prefix(aligned.t_ref, epoch, observation.positions)
            prediction = self._policy.act(observation, prefix)
            check_chunk(prediction.chunk, self._dof)
            taken = time.perf_counter() - start
            answer = Answer(assignment, aligned, epoch, prediction, taken, waited, skipped)
            self._session.deliver(answer)
        except Exception as error:
            self._session.fail(assignment, error)
            self._closing.wait(self._retry)
        else:
            self._scheduler.acted(owner, observation, aligned.arrived, taken)
