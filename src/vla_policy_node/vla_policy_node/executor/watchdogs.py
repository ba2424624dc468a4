"""Watchdogs of the command topic, the age of the executed chunk, the controller, and the robot's mode.

Each reports a fault to the core, which brakes and refuses chunks. Faults that a person must know of stay until the
operator resumes, even when the cause is gone. No watchdog starts the arm again by itself.
"""

from collections.abc import Callable

from vla_core.clocks import FUTURE_TOLERANCE
from vla_core.motion.executor import ChunkExecutor
from vla_core.motion.states import Hold, State
from vla_policy_node.adapters.command_topic import CommandTopic
from vla_policy_node.adapters.controller_joints import ControllerJoints

# During one of these holds another source commands the arm, or none. No set-point is sent once it is at rest.
# Afterwards the executor starts again from the measured position.
TAKEN = (Hold.CONTROLLER_MISSING, Hold.COMPETING_PUBLISHER, Hold.ROBOT_FAULT)


class Watchdogs:
    """Checks on the system around the executor, every 50 ms by `look`. topic, joints: of the controller.

    require_controller: False: no controller needs to subscribe. chunk_max_age: [s] largest age of the observation by
    which the arm moves. robot_problem: one sentence when the robot's own mode forbids motion, or ''.
    controller_problem: the same when the subscribed controller is not active.
    """

    def __init__(
        self,
        core: ChunkExecutor,
        topic: CommandTopic,
        joints: ControllerJoints,
        *,
        require_controller: bool,
        chunk_max_age: float,
        robot_problem: Callable[[], str] = lambda: '',
        controller_problem: Callable[[], str] = lambda: '',
    ) -> None:
        self._core, self._topic, self._joints = core, topic, joints
        self._require_controller, self._chunk_max_age = require_controller, chunk_max_age
        self._robot_problem, self._controller_problem = robot_problem, controller_problem
        self._standing: set[Hold] = set()  # of TAKEN, until released

    def look(self, now: int) -> None:
        """Raise what is wrong at time now [ns]. An inactive executor sends nothing: nothing can be wrong with that."""
        core = self._core
        gone = self._joints.ask()  # also while inactive: the answers are there when the node is activated
        if core.state is State.INACTIVE:
            self._robot_problem()  # takes what came: at activation an old state must not count as a new one
            return
        causes = self.causes()
        if gone:  # though another node may read, or the same one again
            message = f'{gone[0]} ended its subscription of {self._topic.name}: see to it, then call ~/resume'
            causes.setdefault(Hold.CONTROLLER_MISSING, message)
        for hold, message in causes.items():
            core.fault(hold, message)
            self._standing.add(hold)
        age = core.chunk_age(now)
        if age > self._chunk_max_age:
            core.fault(
                Hold.CHUNK_STALE,
                f'the arm moved by an observation that is more than {age:.2f} s old, chunk_max_age is '
                f'{self._chunk_max_age:g} s: is inference too slow, do the clocks agree?',
            )

    def chunk_came(self, t_ref: int, now: int) -> None:
        """Before a chunk is taken: a fresh one ends the fault that the last one was stale. Times in ns."""
        fresh = -FUTURE_TOLERANCE <= (now - t_ref) * 1e-9 < self._chunk_max_age
        if self._core.hold is Hold.CHUNK_STALE and self._core.at_rest and fresh:
            self._core.clear(Hold.CHUNK_STALE)

    def robot_problems(self) -> list[str]:
        """What the robot's mode has against motion, at most one sentence."""
        return [problem] if (problem := self._robot_problem()) else []

    def causes(self) -> dict[Hold, str]:
        """Which of TAKEN have a cause now, one sentence each."""
        found = {}
        if problem := self._robot_problem():
            found[Hold.ROBOT_FAULT] = problem
        if others := self._topic.competing_publishers():
            found[Hold.COMPETING_PUBLISHER] = (
                f'{", ".join(others)} also publishes on {self._topic.name}: stop it, then call ~/resume'
            )
        if self._require_controller and not self._topic.listeners():
            found[Hold.CONTROLLER_MISSING] = (
                f'no controller listens to {self._topic.name} any more: start it again, then call ~/resume'
            )
        elif wrong := self._joints.wrong():  # a controller that was configured anew
            found[Hold.CONTROLLER_MISSING] = f'{wrong[0]}, then call ~/resume'
        elif self._require_controller and (problem := self._controller_problem()):
            found[Hold.CONTROLLER_MISSING] = problem
        return found

    @property
    def silent(self) -> bool:
        """Whether no set-points may be sent now."""
        return bool(self._standing) and self._core.at_rest

    def release(self) -> list[str]:
        """Take back every fault whose cause is gone; what still stands, one sentence each. For the operator."""
        causes = self.causes()
        if Hold.CONTROLLER_MISSING in self._standing - set(causes) and (unknown := self._joints.outstanding()):
            causes[Hold.CONTROLLER_MISSING] = unknown[0]
        for hold in self._standing - set(causes):
            self._core.clear(hold)
            if hold is Hold.CONTROLLER_MISSING:
                self._core.forget_tracking()
        self._standing &= set(causes)
        return list(causes.values())

    def forget(self) -> None:
        """At activation, when the contract was just checked: nothing stands."""
        for hold in (*self._standing, Hold.CHUNK_STALE):
            self._core.clear(hold)
        self._standing.clear()
