"""Runs episodes on a running system: reset, send the instruction as a goal, wait for success, end the goal."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from lifecycle_msgs.msg import Transition
from rclpy.action import ActionClient
from rosgraph_msgs.msg import Clock
from std_msgs.msg import Bool, String

from vla_bringup.demo.advice import Pace
from vla_bringup.processes.probe import Probe
from vla_core.clocks import SECONDS
from vla_msgs.action import ExecuteInstruction
from vla_msgs.msg import Episode, ExecutorStatus, PolicyStatus, TaskProgress
from vla_msgs.srv import ResetEpisode
from vla_policy_node.ros import qos
from vla_policy_node.ros.chunk_msg import to_duration, to_ns

SETTLE = 0.1  # [s] of simulation after a reset, before the executor is activated
LINGER = 4.0  # [s] of simulation after success in which the expert may finish
HOLD = 1.0  # [s] of simulation that a policy's success must hold
BRING_UP = 300.0  # [s] of wall time, enough for the trials of engines at the first start
PATIENCE = 30.0  # [s] of wall time in which the simulated clock must move


def executor_state(code: int) -> str:
    """Return the name of an ExecutorStatus.STATE_* in lower case."""
    names = {
        ExecutorStatus.STATE_INACTIVE: 'inactive',
        ExecutorStatus.STATE_HOLDING: 'holding',
        ExecutorStatus.STATE_EXECUTING: 'executing',
        ExecutorStatus.STATE_BRAKING: 'braking',
    }
    return names.get(code, f'state {code}')


@dataclass
class Seen:
    """Newest messages of an episode for the progress display; None: not received yet."""

    clock: int = 0  # [ns]
    episode: Episode | None = None
    success: bool = False
    missed: str = ''  # first stage of the task that was not reached
    wrong: str = ''  # wrong action, on another object than the instruction names
    executor: ExecutorStatus | None = None
    policy: PolicyStatus | None = None
    progress: TaskProgress | None = None

    @property
    def time(self) -> float:
        """Simulation time since the start of the episode [s]."""
        return (self.clock - to_ns(self.episode.header.stamp)) * SECONDS if self.episode is not None else 0.0

    @property
    def blocked(self) -> str:
        """The executor's message when the arm is blocked; else ''."""
        executor = self.executor
        held = executor is not None and executor.hold_reason == ExecutorStatus.HOLD_BLOCKED
        return executor.message if executor is not None and held else ''


class Episodes:
    """Runs episodes through a probe. The probe's node is in the robot's namespace."""

    def __init__(
        self, probe: Probe, show: Callable[[Seen], None] = lambda seen: None, policy_drives: bool = False
    ) -> None:
        """show is called about 20 times a second. policy_drives: whether the policy drives, or the scripted expert."""
        self.seen = seen = Seen()
        self.pace = Pace(0.0, 0.0)  # of the newest episode, since its instruction
        self._probe, self._show, self._policy_drives = probe, show, policy_drives
        node = probe.node

        def keep(name: str, value: Callable = lambda msg: msg) -> Callable:
            return lambda msg: setattr(seen, name, value(msg))

        node.create_subscription(Clock, '/clock', keep('clock', lambda msg: to_ns(msg.clock)), qos.SENSOR)
        node.create_subscription(Episode, 'sim/episode', keep('episode'), qos.LATCHED)
        node.create_subscription(Bool, 'sim/success', keep('success', lambda msg: msg.data), qos.LATCHED)
        node.create_subscription(String, 'sim/missed', keep('missed', lambda msg: msg.data), qos.LATCHED)
        node.create_subscription(String, 'sim/wrong_object', keep('wrong', lambda msg: msg.data), qos.LATCHED)
        node.create_subscription(ExecutorStatus, 'executor/status', keep('executor'), qos.LATCHED)
        node.create_subscription(PolicyStatus, 'policy/status', keep('policy'), qos.STATUS)
        node.create_subscription(TaskProgress, 'expert/progress', keep('progress'), qos.LATCHED)
        self._goals = ActionClient(node, ExecuteInstruction, 'policy/execute_instruction')
        base = node.get_namespace().rstrip('/')
        self._executor, self._policy = f'{base}/executor', f'{base}/policy'

    def bring_up(self, timeout: float = BRING_UP) -> None:
        """Wait [s] for the simulator, then configure and activate the policy; `run` activates the executor."""
        self._wait(lambda: self.seen.clock > 0 and self.seen.episode is not None, timeout, 'the simulator runs')
        self._probe.bring_up(self._policy, timeout)

    def run(self, task: str, seed: int, time_limit: float, instruction: str = '') -> float | None:
        """Run one episode. Return the simulation time from reset to success [s].

        Returns None without success within time_limit [s], or when the arm is blocked, as no operator is there to
        resume. instruction replaces the instruction of the seed, in the same scene. The executor is inactive while the
        simulator moves the arm to its start. Raises RuntimeError or TimeoutError when a node refuses or stays silent.
        """
        seen, probe = self.seen, self._probe
        if probe.lifecycle_state(self._executor, PATIENCE) == 'active':
            probe.transition(self._executor, Transition.TRANSITION_DEACTIVATE)
        self._wait(lambda: self._executor_state() == ExecutorStatus.STATE_INACTIVE, PATIENCE, 'the inactive executor')
        before = seen.episode.index if seen.episode is not None else 0
        request = ResetEpisode.Request(task=task, seed=seed, instruction=instruction)
        answer = probe.call(ResetEpisode, 'sim/reset', request, 60.0)
        if not answer.success:
            raise RuntimeError(f'sim/reset refused {task}, seed {seed}: {answer.message}')
        self._wait(
            lambda: seen.episode is not None and seen.episode.index > before,
            PATIENCE,
            'sim/episode has the new episode',
        )
        self._sim_wait(lambda: seen.time > SETTLE)
        seen.progress = None
        probe.bring_up(self._executor, PATIENCE)

        goal = ExecuteInstruction.Goal(instruction=answer.instruction, time_limit=to_duration(time_limit + LINGER))
        self._wait(self._goals.server_is_ready, PATIENCE, 'the action policy/execute_instruction appears')
        sent = self._goals.send_goal_async(goal)
        self._wait(sent.done, PATIENCE, 'the policy answers the goal')
        handle = sent.result()
        if not handle.accepted:
            why = seen.policy.message if seen.policy is not None else 'without a message'
            raise RuntimeError(f'the policy refused {answer.instruction!r}: {why}')
        result = handle.get_result_async()
        begun, clock = time.monotonic(), seen.clock

        succeeded, over = False, False
        while not over:
            self._sim_wait(lambda: seen.success or seen.time > time_limit or bool(seen.blocked))
            reached, taken = seen.clock, seen.time
            self._sim_wait(lambda: not seen.success or (seen.clock - reached) * SECONDS > self._linger())  # noqa: B023
            succeeded = seen.success  # False if the object fell meanwhile
            over = succeeded or seen.time > time_limit or bool(seen.blocked)
        self.pace = Pace(time.monotonic() - begun, (seen.clock - clock) * SECONDS)
        if not result.done():
            handle.cancel_goal_async()
            self._wait(result.done, PATIENCE, 'the policy ends its goal')
        return taken if succeeded else None

    def _linger(self) -> float:
        """Return the time to wait after success [s of simulation]."""
        if self._policy_drives:
            return HOLD
        busy = self.seen.progress is None or bool(self.seen.progress.current)
        return LINGER if busy else SETTLE

    def _executor_state(self) -> int:
        return self.seen.executor.state if self.seen.executor is not None else ExecutorStatus.STATE_INACTIVE

    def _wait(self, condition: Callable[[], bool], timeout: float, what: str) -> None:
        self._probe.wait(condition, timeout, what, lambda: self._show(self.seen))

    def _sim_wait(self, condition: Callable[[], bool]) -> None:
        """Wait for the condition while the simulated clock moves. Raises TimeoutError when the clock stands still."""
        moved, clock = time.monotonic(), self.seen.clock

        def watch() -> None:
            nonlocal moved, clock
            self._show(self.seen)
            if self.seen.clock != clock:
                moved, clock = time.monotonic(), self.seen.clock
            elif time.monotonic() - moved > PATIENCE:
                raise TimeoutError(f'the simulated clock stands still for {PATIENCE:.0f} s')

        self._probe.wait(condition, float('inf'), 'the simulation continues', watch)
