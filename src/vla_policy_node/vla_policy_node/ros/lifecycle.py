"""A lifecycle node that survives refused transitions and reports why a transition failed."""

import threading
import traceback
from collections.abc import Callable
from typing import Any

from lifecycle_msgs.msg import Transition
from rcl_interfaces.msg import SetParametersResult
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter

from vla_policy_node.ros.qos_mismatch import ReportsQosMismatch


class SafeLifecycleNode(ReportsQosMismatch, LifecycleNode):
    """Base of the suite's lifecycle nodes. Subclasses write set_up, start, stop and tear_down; each may raise.

    rclpy (Jazzy) lets a transition that is not allowed now raise out of spin(), which kills the node, and swallows
    exceptions of transition callbacks without a word. Here the first answers success=False and the second is
    logged. A ValueError or OSError is something the user can mend: the node stays in the state it was in (after a
    failed configure tear_down has run) and the transition can be tried again. Any other exception is a defect: it
    is logged with its traceback, tear_down runs and the node is unconfigured.

    Parameters are read when the node is configured, those in read_at_activate when it is activated. Setting one later
    is refused: it would be accepted without effect, and a user must not believe that it slowed or stopped the arm.
    """

    read_at_activate: tuple[str, ...] = ()

    def __init__(self, name: str, **kwargs) -> None:
        super().__init__(name, **kwargs)
        service: Any = self._service_change_state  # rclpy awaits callbacks, though its annotations do not allow for it
        inner, busy = service.callback, threading.Lock()

        async def guarded(request, response):
            if not busy.acquire(blocking=False):
                response.success = False
                return response
            try:
                asked = request.transition
                if asked.id == Transition.TRANSITION_ACTIVATE or asked.label == 'activate':
                    await self.before_start()
                return inner(request, response)
            except Exception as error:
                self.get_logger().error(f'transition refused: {error}')
                response.success = False
                return response
            finally:
                busy.release()

        # In a group of its own: the timers of the node go on while it waits.
        service.callback, service.callback_group = guarded, ReentrantCallbackGroup()
        service.callback_group.add_entity(service)
        self._configured = self._activated = False
        self.add_on_set_parameters_callback(self._refuse_late)

    def _refuse_late(self, parameters: list[Parameter]) -> SetParametersResult:
        for p in parameters:
            if p.name in self.read_at_activate:
                if self._activated:
                    return SetParametersResult(successful=False, reason=f'{p.name}: deactivate the node first')
            elif self._configured and p.name != 'use_sim_time':
                return SetParametersResult(successful=False, reason=f'{p.name}: clean up the node first')
        return SetParametersResult(successful=True)

    # What subclasses write; each may raise.
    async def before_start(self) -> None:
        """Called in any state when the service is asked to activate, before `start`: may wait while the node spins.
        Another transition is refused meanwhile."""

    def set_up(self) -> None:
        """unconfigured -> inactive: read parameters, load, subscribe."""

    def start(self) -> None:
        """inactive -> active."""

    def stop(self) -> None:
        """active -> inactive."""

    def tear_down(self) -> None:
        """Release all that set_up made; called more than once without harm."""

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        result = self._try('configure', self.set_up)
        if result is TransitionCallbackReturn.FAILURE:
            self._try('undo the failed configure', self.tear_down)
        self._configured = result is TransitionCallbackReturn.SUCCESS
        return result

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        result = self._try('activate', self.start)
        self._activated = result is TransitionCallbackReturn.SUCCESS
        return super().on_activate(state) if self._activated else result

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        result = self._try('deactivate', self.stop)
        self._activated = result is not TransitionCallbackReturn.SUCCESS
        return result if self._activated else super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._configured = self._activated = False
        return self._try('clean up', self.tear_down)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._configured = self._activated = False
        return self._try('shut down', self.tear_down)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._configured = self._activated = False
        return self._try('clean up after the error', self.tear_down)

    def _try(self, what: str, action: Callable[[], None]) -> TransitionCallbackReturn:
        try:
            action()
        except (ValueError, OSError) as error:
            self.get_logger().error(f'cannot {what}: {error}')
            return TransitionCallbackReturn.FAILURE
        except Exception:
            self.get_logger().error(f'cannot {what}:\n{traceback.format_exc()}')
        else:
            return TransitionCallbackReturn.SUCCESS
        return TransitionCallbackReturn.ERROR
