"""The outputs of one configured model: it makes those that the policy has, and passes the events of the node on."""

from collections.abc import Mapping
from typing import Any

from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.node import Node

from vla_msgs.action import ExecuteInstruction
from vla_msgs.msg import PolicyStatus
from vla_policy_node.policy.outputs import OUTPUTS
from vla_policy_node.policy.outputs.base import Context, DecodedOutput
from vla_policy_node.policy.session import Answer
from vla_policy_node.policy.task_scheduler import TaskScheduler


def declare_outputs(node: Node) -> dict[str, Any]:
    """Declare the parameters of all outputs; name -> settings. Raises ValueError naming a wrong one."""
    return {kind.name: kind.declare(node) for kind in OUTPUTS}


class Outputs:
    """Has the outputs of OUTPUTS that the policy has, and the scheduler of their tasks. See Output for the events."""

    def __init__(self, context: Context, settings: Mapping[str, Any]) -> None:
        """settings: what `declare_outputs` returned."""
        has, self._session = context.policy.info.outputs, context.session
        self._outputs = [kind(context, settings[kind.name]) for kind in OUTPUTS if kind.name in has]
        for kind in OUTPUTS:
            if kind.name not in has and issubclass(kind, DecodedOutput) and settings[kind.name].rate > 0:
                context.node.get_logger().info(
                    f'model {context.policy.info.model_id} has only the outputs {sorted(has)}: '
                    f'{kind.label}_rate {settings[kind.name].rate:g} Hz has no effect'
                )
        self.scheduler = TaskScheduler([task for output in self._outputs for task in output.tasks])
        self._session.changed.append(self._changed)
        self._session.delivered.append(self._delivered)

    def image(self, camera: str, stamp: int, pixels: Any) -> None:
        """A good image came: stamp [ns], pixels (height, width, 3) uint8 RGB. In the spin thread."""
        for output in self._outputs:
            output.image(camera, stamp, pixels)

    def tick(self) -> None:
        """20 times a second, in the spin thread."""
        for output in self._outputs:
            output.tick()

    def fill(self, msg: PolicyStatus) -> None:
        """Write the outputs' fields of the status. Under the lock of the session."""
        for output in self._outputs:
            output.fill(msg)

    def fill_feedback(self, msg: ExecuteInstruction.Feedback) -> None:
        """Write the outputs' fields of the feedback of goals. Under the lock of the session."""
        for output in self._outputs:
            output.fill_feedback(msg)

    def diagnose(self) -> list[DiagnosticStatus]:
        """The diagnostics of all tasks. Under the lock of the session."""
        return [status for output in self._outputs for status in output.diagnose(self.scheduler.act)]

    def close(self) -> None:
        """Destroy the outputs. Called once the worker has ended."""
        self._session.changed.remove(self._changed)
        self._session.delivered.remove(self._delivered)
        self.scheduler.tasks.clear()
        for output in self._outputs:
            output.close()
        self._outputs.clear()

    def _changed(self, instruction: str) -> None:
        for output in self._outputs:
            output.forget()

    def _delivered(self, answer: Answer, sequence: int, latency: float) -> None:
        for output in self._outputs:
            output.delivered(answer)
