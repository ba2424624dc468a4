"""What a person can do with the executor: stop, resume, recover the robot, send the arm to its start or home."""

from collections.abc import Callable, Coroutine
from typing import Any

from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.node import Node
from rclpy.task import Future
from std_msgs.msg import Bool
from std_srvs.srv import Trigger

from vla_core.motion.executor import ChunkExecutor
from vla_core.motion.states import State
from vla_policy_node.executor.report import ExecutorReport
from vla_policy_node.executor.watchdogs import Watchdogs
from vla_policy_node.integrations.franka import Recovery
from vla_policy_node.integrations.moveit import MoveItHome
from vla_policy_node.ros.parameters import declare
from vla_policy_node.ros.qos_mismatch import EveryPublisher
from vla_policy_node.ros.waiting import StepFailed

_PRESSED = 'the emergency stop is pressed: publish false on ~/emergency_stop, then call ~/resume'


class OperatorServices:
    """`~/stop`, `~/resume`, `~/emergency_stop`, `~/go_to_start`; `~/recover` where the robot's mode is watched;
    `~/go_home` with MoveIt.

    recovery: None: ~/recover is not offered. Raises ValueError naming a message package that is asked for and missing.
    """

    def __init__(
        self,
        node: Node,
        core: ChunkExecutor,
        watchdogs: Watchdogs,
        report: ExecutorReport,
        recovery: Recovery | None,
    ) -> None:
        self._node, self._core, self._watchdogs, self._report = node, core, watchdogs, report
        self._pressed = self._stopped = False  # the newest of the topic; until an operator resumes
        self._busy = ''  # the motion that has the arm meanwhile
        self._stop_it = Future()  # done: this motion must end
        self._moved = False  # another client moved the arm: start again from its position
        self._recovery = recovery
        self._home = _home(node, core)
        self._stops = EveryPublisher(node, Bool, '~/emergency_stop', self._on_emergency_stop)
        group = ReentrantCallbackGroup()  # the longer ones wait for other nodes while the control timer runs
        self._services = [
            node.create_service(Trigger, '~/stop', self._on_stop),
            node.create_service(Trigger, '~/resume', self._on_resume),
            node.create_service(Trigger, '~/go_to_start', self._on_go_to_start),
        ]
        if self._recovery is not None:
            self._services.append(node.create_service(Trigger, '~/recover', self._on_recover, callback_group=group))
        if self._home is not None:
            self._services.append(node.create_service(Trigger, '~/go_home', self._on_go_home, callback_group=group))

    @property
    def arm_lent(self) -> bool:
        """Whether MoveIt or the robot moves the arm on request: no set-points are sent then."""
        return bool(self._busy) or self._moved

    def problems(self) -> list[str]:
        """Return the reasons against activation, one sentence each."""
        if self._pressed:
            return [_PRESSED]
        if self._busy:
            return [f'{self._busy}: wait until that is over']
        return ['the emergency stop was pressed: call ~/resume, then activate'] if self._stopped else []

    def forget(self) -> None:
        """At activation, which starts from where the arm is."""
        self._moved = False

    def close(self) -> None:
        for service in self._services:
            self._node.destroy_service(service)
        self._stops.close()
        if self._home is not None:
            self._home.close()

    # ---- stop and resume

    def _on_emergency_stop(self, msg: Bool) -> None:
        self._pressed = bool(msg.data)
        if self._pressed and not self._stopped:
            self._stopped = True
            self._core.emergency_stop()
            self._interrupt()
            self._report.publish()

    def _on_stop(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._core.operator_stop()
        self._interrupt()
        response.success = self._core.state is not State.INACTIVE
        response.message = 'braking, or at rest: call ~/resume to continue' if response.success else 'inactive already'
        self._report.publish()
        return response

    def _on_resume(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        return self._answer(response, self._busy or self._resume())

    def _on_go_to_start(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        causes = '; '.join([*self.problems(), *self._watchdogs.causes().values()])
        moved = 'the arm was moved by another client: call ~/resume first' if self._moved else ''
        problem = self._busy or causes or moved or self._core.go_to_start()
        return self._answer(response, problem, f'on the way, {self._core.horizon_left():.1f} s at least')

    def _interrupt(self) -> None:
        """Whoever moves the arm on our behalf stops."""
        if self._busy and not self._stop_it.done():
            self._stop_it.set_result(None)

    def _resume(self) -> str:
        """Take back whatever only an operator may take back; '' or why not."""
        core = self._core
        if self._pressed:
            return _PRESSED
        if not core.at_rest:
            return 'the arm is still braking: try again in a moment'
        reset = core.reset_emergency_stop()
        self._stopped = False
        if core.state is State.INACTIVE:
            return '' if reset else 'not active: activate the executor'
        again = self._watchdogs.silent or self._moved
        if standing := self._watchdogs.release():
            return '; '.join(standing)
        if again:
            try:  # from where the arm is now
                core.activate(self._node.get_clock().now().nanoseconds)
            except ValueError as error:
                self._moved = True
                return str(error)
            self._moved = False
        elif core.frozen:
            return core.frozen
        elif not core.resume() and not reset:
            return 'there is nothing to resume from'
        return ''

    # ---- what takes longer

    async def _on_recover(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        assert self._recovery is not None
        problem = self._busy or ('' if self._core.at_rest else 'the arm is still braking: try again in a moment')
        if not problem and self._pressed:
            problem = _PRESSED
        done = ''
        if not problem:
            problem, done = await self._lend('the robot is being recovered', self._recovery.run)
        if not problem and self._core.state is not State.INACTIVE:
            problem = self._resume()
        return self._answer(response, problem, done)

    async def _on_go_home(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        home = self._home
        assert home is not None
        problem = self._busy or '; '.join([*self.problems(), *self._watchdogs.causes().values()])
        if not problem and not self._core.at_rest:
            problem = 'the arm is moving: call ~/stop first'
        if not problem:
            self._core.operator_stop()  # the active source must not continue when the arm is home
            problem, _ = await self._lend('MoveIt moves the arm home', lambda: home.run(self._stop_it))
        return self._answer(response, problem, 'home; call ~/resume to follow chunks again')

    async def _lend(self, what: str, steps: Callable[[], Coroutine]) -> tuple[str, Any]:
        """Send nothing while `steps` has the arm. Returns why it failed, '' if it did not, and what it returned."""
        self._busy, self._stop_it = what, Future(executor=self._node.executor)
        try:
            return '', await steps()
        except StepFailed as error:
            return str(error), None
        finally:
            self._busy, self._moved = '', True

    def _answer(self, response: Trigger.Response, problem: str, success: str = '') -> Trigger.Response:
        response.success = not problem
        response.message = problem or success or f'epoch {self._core.epoch}'
        self._report.publish()
        return response


# Parameters are declared also where nothing uses them: what there is to set does not depend on what is set.
def _home(node: Node, core: ChunkExecutor) -> MoveItHome | None:
    wanted = declare(node, 'moveit.enabled', False, 'offer ~/go_home, planned and executed by MoveIt')
    settings: dict[str, Any] = {
        'group': declare(node, 'moveit.group', 'fr3_arm', 'planning group of the arm'),
        'speed': declare(node, 'moveit.speed', 0.2, 'fraction of the limits', low=0.01, high=1.0),
        'seconds': declare(node, 'moveit.timeout', 60.0, 'for planning and motion [s]', low=1.0, high=600.0),
    }
    return MoveItHome(node, core.profile, **settings) if wanted else None
