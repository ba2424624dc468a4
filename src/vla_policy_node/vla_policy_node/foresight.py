"""What the model says and sees of what comes: plan texts and predicted images, decoded in the gaps between actions."""

import traceback
from collections.abc import Callable
from typing import Any

from diagnostic_msgs.msg import DiagnosticStatus, KeyValue
from rclpy.node import Node
from sensor_msgs.msg import Image
from std_msgs.msg import String

from vla_model.types import Plan, PredictedImage
from vla_policy_node.core.stats import Window
from vla_policy_node.inference import Assignment, Policy
from vla_policy_node.policy_parameters import PolicyParameters
from vla_policy_node.policy_report import milliseconds
from vla_policy_node.ros import qos
from vla_policy_node.ros.chunk_msg import to_time
from vla_policy_node.ros.image_msg import image_msg
from vla_policy_node.schedule import Schedule, Work

TRIAL_STEPS = 3  # a first forward, one more, and the last, which for an image ends with the image decoder


class Foresight:
    """Publishers of `~/plan_text` and `~/predicted_image`, and the schedule of the decodes behind them.

    A kind is decoded while its rate is above 0 and its topic has a subscriber.
    lock: the node's; guards what is published. in_force: assignment and epoch. frame: frame_id of the first camera's
    newest image; the predicted image is one of that camera.
    """

    def __init__(
        self,
        node: Node,
        p: PolicyParameters,
        policy: Policy,
        *,
        lock: Any,
        in_force: Callable[[], tuple[Assignment | None, int]],
        frame: Callable[[], str],
    ) -> None:
        self._node, self._lock, self._in_force, self._frame = node, lock, in_force, frame
        self._said = ''  # the newest plan text
        self._plans = node.create_publisher(String, '~/plan_text', qos.LATCHED)
        self._images = node.create_publisher(Image, '~/predicted_image', qos.SENSOR_OUT)
        self._publishers = {'plan': self._plans, 'imagine': self._images}
        self._latencies = {name: Window(100) for name in self._publishers}

        def plan(steps: int) -> Callable:
            return lambda seen: policy.start_plan(
                seen, length=p.plan_tokens, steps=steps, threshold=p.plan_threshold, cached=p.decode_cached
            )

        def imagine(steps: int) -> Callable:
            return lambda seen: policy.start_imagine(seen, steps=steps, cached=p.decode_cached)

        works = []
        for name, rate, start, steps in (
            ('plan', p.plan_rate, plan, p.plan_steps),
            ('imagine', p.imagine_rate, imagine, p.imagine_steps),
        ):
            if rate > 0:
                works.append(self._work(name, rate, start(steps), start(min(steps, TRIAL_STEPS))))
        self.schedule = Schedule(works)

    def _work(self, name: str, rate: float, start: Callable, trial: Callable) -> Work:
        publisher = self._publishers[name]
        return Work(
            name,
            rate,
            start=start,
            trial=trial,
            wanted=lambda: publisher.get_subscription_count() > 0,
            deliver=lambda owner, result: self._deliver(name, owner, result),
            tell=self._tell,
        )

    def _deliver(self, name: str, owner: tuple[Assignment, int], result: Plan | PredictedImage) -> None:
        """In the worker thread."""
        with self._lock:
            if owner != self._in_force():
                return  # stopped or superseded meanwhile
            if isinstance(result, Plan):
                self._say(result.text)
            else:
                self._images.publish(image_msg(to_time(result.due), self._frame(), result.image))
            self._latencies[name].add((self._node.get_clock().now().nanoseconds - result.t_ref) * 1e-9)

    def _say(self, text: str) -> None:
        self._said = text
        self._plans.publish(String(data=text))

    def _tell(self, message: str, error: Exception | None) -> None:
        """In the worker thread."""
        if error is None:
            self._node.get_logger().warning(message)
        else:
            self._node.get_logger().error(f'{message}\n{"".join(traceback.format_exception(error))}')

    def forget(self) -> None:
        """Under the lock: another instruction, or none. The plan of the one before must not stay latched."""
        if self._said:
            self._say('')

    def diagnose(self) -> list[DiagnosticStatus]:
        """One for each kind. Under the lock."""
        return [self._diagnosis(work) for work in self.schedule.works]

    def _diagnosis(self, work: Work) -> DiagnosticStatus:
        latency = self._latencies[work.name].percentiles()
        subscribers = self._publishers[work.name].get_subscription_count()
        idle = 'OK' if subscribers else 'idle: nobody subscribes'
        values = {
            'done': work.done,
            'dropped': work.dropped,
            'latency p50/p95 [ms]': milliseconds(latency.p50, latency.p95),
            'longest step first/later [ms]': milliseconds(*work.longest(self.schedule.act)),
            'subscribers': subscribers,
        }
        return DiagnosticStatus(
            level=DiagnosticStatus.WARN if work.failure or work.starving else DiagnosticStatus.OK,
            name=f'{self._node.get_fully_qualified_name()}: {work.name}',
            message=work.failure or work.starving or idle,
            values=[KeyValue(key=key, value=str(value)) for key, value in values.items()],
        )

    def close(self) -> None:
        """Once the worker has ended."""
        for publisher in self._publishers.values():
            self._node.destroy_publisher(publisher)
