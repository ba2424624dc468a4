"""Base class of the outputs of the model."""

import traceback
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Generic, TypeVar

from diagnostic_msgs.msg import DiagnosticStatus, KeyValue
from rclpy.node import Node

from vla_core.stats import Window
from vla_model.policy import Job, Policy
from vla_model.types import Observation
from vla_msgs.action import ExecuteInstruction
from vla_msgs.msg import PolicyStatus
from vla_policy_node.policy.inference_report import milliseconds
from vla_policy_node.policy.session import Answer, Assignment, Session
from vla_policy_node.policy.task_scheduler import DecodeTask
from vla_policy_node.ros.parameters import declare

Owner = tuple[Assignment, int]  # what `Session.current` returned for the action before the decode
R = TypeVar('R')

TRIAL_STEPS = 3  # a first forward, one more, and the last, which for an image ends with the image decoder


@dataclass(frozen=True)
class DecodeSettings:
    """How an output is decoded in steps."""

    rate: float  # [Hz] most starts per second of observation time; 0: never
    options: Any  # of the policy's `start`; `steps` is the number of forwards


@dataclass(frozen=True)
class Context:
    """What an output works with."""

    node: Node
    policy: Policy
    session: Session
    camera_topics: Mapping[str, str]  # camera -> image topic
    frames: Mapping[str, str]  # camera -> frame_id of its newest image


class Output:
    """One output of the model: its parameters, its request to the policy, its topics, its part of status and feedback.

    A subclass is one file here and one entry of OUTPUTS. It is made for a policy whose info.outputs has its name, and
    closed with it. An output that comes with each chunk overrides `delivered`; one that is computed in steps between
    two actions is a DecodedOutput. Every hook is optional. "Under the lock" is that of the session.
    """

    name: ClassVar[str]  # in PolicyInfo.outputs

    def __init__(self, context: Context, settings: Any) -> None:
        """settings: what `declare` returned."""
        self.context, self.node, self.session = context, context.node, context.session
        self.tasks: list[DecodeTask] = []  # decodes in the gaps between actions
        self._publishers: list[Any] = []

    @classmethod
    def declare(cls, node: Node) -> Any:
        """Declare and read the parameters. Raises ValueError naming a wrong one. Called for all outputs."""

    def delivered(self, answer: Answer) -> None:
        """A chunk was sent. In the worker thread, under the lock."""

    def image(self, camera: str, stamp: int, pixels: Any) -> None:
        """A good image came: stamp [ns], pixels (height, width, 3) uint8 RGB. In the spin thread."""

    def tick(self) -> None:
        """20 times a second, in the spin thread."""

    def forget(self) -> None:
        """Another instruction, or none, is in force. Under the lock."""

    def fill(self, msg: PolicyStatus) -> None:
        """Write the output's fields of the status. Under the lock."""

    def fill_feedback(self, msg: ExecuteInstruction.Feedback) -> None:
        """Write the output's fields of the feedback of goals. Under the lock."""

    def diagnose(self, act: float) -> list[DiagnosticStatus]:
        """The diagnostics; act: usual duration of an action [s]. Under the lock."""
        return [self.diagnosis(task, act, {}) for task in self.tasks]

    def close(self) -> None:
        """Destroy what was made. Called once the worker has ended.

        A task refers to the model and to this object: it is dropped, so that the model's memory is free at once.
        """
        self.tasks.clear()
        for publisher in self._publishers:
            self.node.destroy_publisher(publisher)
        self._publishers.clear()

    # ---- for subclasses

    def publisher(self, kind: type, topic: str, profile: Any) -> Any:
        """A publisher that `close` destroys."""
        self._publishers.append(self.node.create_publisher(kind, topic, profile))
        return self._publishers[-1]

    def log(self, message: str, error: Exception | None) -> None:
        """Log what a task reports. In the worker thread."""
        if error is None:
            self.node.get_logger().warning(message)
        else:
            self.node.get_logger().error(f'{message}\n{"".join(traceback.format_exception(error))}')

    def diagnosis(self, task: DecodeTask, act: float, more: Mapping[str, Any], idle: str = 'OK') -> DiagnosticStatus:
        """The diagnostics of a task. more: values beside its own. idle: the message while nothing is wrong."""
        values = {
            'done': task.done,
            'dropped': task.dropped,
            'step to expect first/later [ms]': milliseconds(*task.expected(act)),
            **more,
        }
        return DiagnosticStatus(
            level=DiagnosticStatus.WARN if task.failure or task.starving else DiagnosticStatus.OK,
            name=f'{self.node.get_fully_qualified_name()}: {task.name}',
            message=task.failure or task.starving or idle,
            values=[KeyValue(key=key, value=str(value)) for key, value in values.items()],
        )


class DecodedOutput(Output, Generic[R]):
    """An output that the policy computes in steps, while its topic has a subscriber or a goal asks for it.

    A subclass sets `name`, `label`, `kind`, `topic` and `profile`, declares DecodeSettings and overrides `publish`.
    """

    label: ClassVar[str]  # in diagnostics, messages, and the name of the parameter LABEL_rate
    kind: ClassVar[type]  # message type of the topic
    topic: ClassVar[str]  # that must have a subscriber
    profile: ClassVar[Any]  # its QoS profile

    def __init__(self, context: Context, settings: DecodeSettings) -> None:
        super().__init__(context, settings)
        self.out = self.publisher(self.kind, self.topic, self.profile)
        self._latencies = Window(100)  # [s] t_ref -> published
        options = settings.options
        trial = replace(options, steps=min(options.steps or TRIAL_STEPS, TRIAL_STEPS))  # 0: the checkpoint's
        if settings.rate > 0:
            task = DecodeTask(
                self.label,
                settings.rate,
                start=lambda seen: self.start(seen, options),
                trial=lambda seen: context.policy.start(self.name, seen, trial),
                wanted=self.wanted,
                deliver=self._deliver,
                report=self.log,
            )
            self.tasks.append(task)

    def start(self, seen: Observation, options: Any) -> Job[R]:
        """Start to decode. In the worker thread."""
        return self.context.policy.start(self.name, seen, options)

    def publish(self, owner: Owner, result: R) -> None:
        """Publish a result whose owner is in force. In the worker thread, under the lock."""
        raise NotImplementedError

    def wanted(self) -> bool:
        """Whether the topic has a subscriber, or a goal asks for the output."""
        return self.out.get_subscription_count() > 0 or self.name in self.session.requested

    def _deliver(self, owner: Owner, result: Any) -> None:
        with self.session.lock:
            if owner != self.session.current():
                return  # stopped or superseded meanwhile
            self.publish(owner, result)
            self._latencies.add((self.node.get_clock().now().nanoseconds - result.t_ref) * 1e-9)

    def diagnose(self, act: float) -> list[DiagnosticStatus]:
        latency, subscribers = self._latencies.percentiles(), self.out.get_subscription_count()
        more = {'latency p50/p95 [ms]': milliseconds(latency.p50, latency.p95), 'subscribers': subscribers}
        idle = 'OK' if subscribers else 'idle: no subscriber'
        return [self.diagnosis(task, act, more, idle) for task in self.tasks if task.name == self.label]


def declare_rate(node: Node, label: str, what: str) -> float:
    """The parameter LABEL_rate [Hz]. what: the results, in the plural."""
    return declare(
        node, f'{label}_rate', 0.5, f'most {what} per second of observation time [Hz]; 0: none', low=0, high=10
    )


def declare_cached(node: Node) -> bool:
    """The parameter decode_cached, one for all outputs."""
    return declare(
        node,
        'decode_cached',
        True,
        'plan and imagine compute the prompt once per observation, later forwards only what is decoded: much faster, '
        'not quite the same',
    )
