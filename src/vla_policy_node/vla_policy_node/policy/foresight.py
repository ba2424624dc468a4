"""What the model says and sees of what comes: plan texts and predicted images, decoded in the gaps between actions.

And what became of it: the surprise, when the time has come that an image was imagined for.
"""

import array
import math
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus, KeyValue
from rclpy.node import Node
from rclpy.publisher import Publisher
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import String

from vla_core.observe.prediction_error import Expectations, Pair, surprise
from vla_core.stats import Window
from vla_model.observation import unsquared
from vla_model.policy import IMAGE, PLAN, POINTS, ImageOptions, Job, PlanOptions, Policy
from vla_model.types import Observation, Plan, PredictedImage
from vla_msgs.msg import PolicyStatus, VisualTrace
from vla_policy_node.policy.inference_report import milliseconds
from vla_policy_node.policy.parameters import PolicyParameters
from vla_policy_node.policy.schedule import Schedule, Work
from vla_policy_node.policy.session import Answer, Assignment, Session
from vla_policy_node.ros import qos
from vla_policy_node.ros.camera_info import camera_info_topic, squared
from vla_policy_node.ros.chunk_msg import to_time
from vla_policy_node.ros.image_msg import image_msg

TRIAL_STEPS = 3  # a first forward, one more, and the last, which for an image ends with the image decoder
COMPARED = 10.0  # [Hz] most comparisons; there is one for each imagined image at most


class _Comparison:
    """The surprise of a pair, in one step: a few milliseconds."""

    def __init__(self, pair: Pair | None) -> None:
        self._pair = pair
        self.result: tuple[Pair, float] | None = None

    def step(self) -> bool:
        if (pair := self._pair) is not None:
            self.result = pair, surprise(pair.before, pair.imagined, pair.observed)
        return True


class Foresight:
    """Publishers of `~/plan_text`, `~/predicted_image` and its `~/camera_info`, and the schedule behind them.

    A kind is decoded while its rate is above 0 and its topic has a subscriber.
    surprise: the time [ns] that the image compared last showed, and how far from it the camera's was; (0, NaN): none.
    session: its lock guards what is published. frames: camera -> frame_id of its newest image.
    """

    def __init__(
        self,
        node: Node,
        p: PolicyParameters,
        policy: Policy,
        session: Session,
        frames: Mapping[str, str],
    ) -> None:
        self._node, self._session, self._frames = node, session, frames
        self.said = ''  # the newest plan text
        self._publishers: dict[str, Publisher] = {}  # of what the policy has
        rates = {'plan': p.plan_rate, 'imagine': p.imagine_rate}
        if PLAN in policy.info.outputs:
            self._publishers['plan'] = node.create_publisher(String, '~/plan_text', qos.LATCHED)
        if IMAGE in policy.info.outputs:
            self._publishers['imagine'] = node.create_publisher(Image, '~/predicted_image', qos.SENSOR_OUT)
        for name in (name for name, rate in rates.items() if rate > 0 and name not in self._publishers):
            node.get_logger().info(
                f'model {policy.info.model_id} has only the outputs {sorted(policy.info.outputs)}: {name}_rate '
                f'{rates[name]:g} Hz has no effect'
            )
        self._latencies = {name: Window(100) for name in self._publishers}
        info = policy.info
        self._pointed = node.create_publisher(VisualTrace, '~/pointed', qos.STATUS) if POINTS in info.outputs else None
        self._cameras = info.cameras
        self._camera, self._horizon = info.cameras[0], round(info.horizon * info.dt * 1e9)
        self._info_topic = camera_info_topic(p.cameras[self._camera])
        self._infos = node.create_publisher(CameraInfo, '~/camera_info', qos.SENSOR_OUT)
        self._info_source: Any = None  # the subscription of the camera's own, while somebody wants ours
        self._info: CameraInfo | None = None  # the camera's newest
        self._expectations = Expectations()
        self.surprise, self._surprises = (0, math.nan), Window(100)

        def plan(steps: int) -> Callable:
            options = PlanOptions(p.plan_tokens, steps, p.plan_threshold, p.decode_cached)
            return lambda seen: policy.start(PLAN, seen, options)

        def imagine(steps: int) -> Callable:
            options = ImageOptions(steps, cached=p.decode_cached)
            return lambda seen: policy.start(IMAGE, seen, options)

        def imagine_and_wait(seen: Observation) -> Job[PredictedImage]:
            job = imagine(p.imagine_steps)(seen)
            self._expectations.begin(seen.t_ref, seen.t_ref + self._horizon, seen.images[self._camera])
            return job

        works = []
        if p.plan_rate > 0 and PLAN in info.outputs:
            works.append(self._work('plan', p.plan_rate, plan(p.plan_steps), plan(min(p.plan_steps, TRIAL_STEPS))))
        if p.imagine_rate > 0 and IMAGE in info.outputs:
            trial = imagine(min(p.imagine_steps, TRIAL_STEPS))
            works.append(self._work('imagine', p.imagine_rate, imagine_and_wait, trial))
            works.append(self._comparison())
        self.schedule = Schedule(works)
        session.changed.append(self._forget)

    def _comparison(self) -> Work:
        blank = np.zeros((256, 256, 3), np.uint8)
        trial = Pair(None, 0, blank, blank, blank)
        return Work(
            'surprise',
            COMPARED,
            start=lambda _: _Comparison(self._expectations.take()),
            trial=lambda _: _Comparison(trial),
            wanted=lambda: self._expectations.ready,
            deliver=self._compared,
            tell=self._tell,
        )

    def _work(self, name: str, rate: float, start: Callable, trial: Callable) -> Work:
        publisher = self._publishers[name]
        return Work(
            name,
            rate,
            start=start,
            trial=trial,
            wanted=lambda: publisher.get_subscription_count() > 0 or name in self._session.requested,
            deliver=lambda owner, result: self._deliver(name, owner, result),
            tell=self._tell,
        )

    def _deliver(self, name: str, owner: tuple[Assignment, int], result: Plan | PredictedImage) -> None:
        """In the worker thread."""
        with self._session.lock:
            if owner != self._session.current():
                return  # stopped or superseded meanwhile
            if isinstance(result, Plan):
                self._say(result.text)
            else:
                self._publishers['imagine'].publish(
                    image_msg(to_time(result.due), self._frames.get(self._camera, ''), result.image)
                )
                self._publish_info(result)
                self._expectations.imagined(owner, result)
            self._latencies[name].add((self._node.get_clock().now().nanoseconds - result.t_ref) * 1e-9)

    def _publish_info(self, shown: PredictedImage) -> None:
        """Under the lock: that of an image just published."""
        if self._info is None or self._infos.get_subscription_count() == 0:
            return
        try:
            info = squared(self._info, shown.image.shape[0])
        except ValueError as error:
            self._node.get_logger().warning(f'{self._info_topic}: {error}', throttle_duration_sec=30.0)
            return
        info.header.stamp, info.header.frame_id = to_time(shown.due), self._frames.get(self._camera, '')
        self._infos.publish(info)

    def delivered(self, answer: Answer) -> None:
        """A chunk was sent. In the worker thread, under the lock."""
        if self._pointed is not None and self._pointed.get_subscription_count() > 0:
            for camera, places in zip(self._cameras, answer.prediction.points, strict=True):
                self._point(answer.aligned.t_ref, camera, places, answer.aligned.values[camera].shape)

    def _point(self, t_ref: int, camera: str, places: np.ndarray, shape: tuple[int, ...]) -> None:
        """places: see Prediction.points; shape: of the image."""
        assert self._pointed is not None
        height, width = shape[:2]
        msg = VisualTrace(kind=VisualTrace.NAMED, camera=camera, width=width, height=height)
        msg.header.stamp, msg.header.frame_id = to_time(t_ref), self._frames.get(camera, '')
        msg.u, msg.v = (array.array('f', column) for column in unsquared(places, height, width).T)
        self._pointed.publish(msg)

    def fill(self, msg: PolicyStatus) -> None:
        """Write the surprise into the status. Under the lock."""
        stamp, msg.surprise = self.surprise
        msg.surprise_stamp = to_time(stamp)

    def _compared(self, owner: tuple[Assignment, int], result: tuple[Pair, float] | None) -> None:
        """In the worker thread."""
        with self._session.lock:
            if result is None or result[0].owner != self._session.current():
                return  # what was imagined for another instruction, or another epoch, did not have to happen
            self.surprise = result[0].due, result[1]
            self._surprises.add(result[1])

    def saw(self, camera: str, stamp: int, pixels: np.ndarray) -> None:
        """Every good image; stamp in ns. In the spin thread."""
        if camera == self._camera:
            self._expectations.saw(stamp, pixels)

    def look(self) -> None:
        """In the spin thread, 20 times a second: who is there."""
        wanted = self._infos.get_subscription_count() > 0
        if wanted and self._info_source is None:
            self._info_source = self._node.create_subscription(CameraInfo, self._info_topic, self._on_info, qos.SENSOR)
        elif not wanted and self._info_source is not None:
            self._node.destroy_subscription(self._info_source)
            self._info_source = None

    def _on_info(self, msg: CameraInfo) -> None:
        self._info = msg

    def _say(self, text: str) -> None:
        self.said = text
        self._publishers['plan'].publish(String(data=text))

    def _tell(self, message: str, error: Exception | None) -> None:
        """In the worker thread."""
        if error is None:
            self._node.get_logger().warning(message)
        else:
            self._node.get_logger().error(f'{message}\n{"".join(traceback.format_exception(error))}')

    def _forget(self, instruction: str) -> None:
        """The plan of the instruction before must not stay latched."""
        if self.said:
            self._say('')
        self._expectations.clear()
        self.surprise = 0, math.nan

    def diagnose(self) -> list[DiagnosticStatus]:
        """One for each kind. Under the lock."""
        return [self._diagnosis(work) for work in self.schedule.works]

    def _diagnosis(self, work: Work) -> DiagnosticStatus:
        values: dict[str, Any] = {
            'done': work.done,
            'dropped': work.dropped,
            'step to expect first/later [ms]': milliseconds(*work.expected(self.schedule.act)),
        }
        idle = 'OK'
        if work.name in self._publishers:
            latency = self._latencies[work.name].percentiles()
            values['latency p50/p95 [ms]'] = milliseconds(latency.p50, latency.p95)
            values['subscribers'] = self._publishers[work.name].get_subscription_count()
            idle = 'OK' if values['subscribers'] else 'idle: nobody subscribes'
        else:
            p = self._surprises.percentiles()
            values['surprise newest/p50/p95'] = ' / '.join(f'{v:.2f}' for v in (self.surprise[1], p.p50, p.p95))
        return DiagnosticStatus(
            level=DiagnosticStatus.WARN if work.failure or work.starving else DiagnosticStatus.OK,
            name=f'{self._node.get_fully_qualified_name()}: {work.name}',
            message=work.failure or work.starving or idle,
            values=[KeyValue(key=key, value=str(value)) for key, value in values.items()],
        )

    def close(self) -> None:
        """Once the worker has ended. What was to be decoded leads to the model and back to this: it is let go, so that
        the model's memory is free before another one is loaded."""
        self._session.changed.remove(self._forget)
        self.schedule.works.clear()
        for publisher in (*self._publishers.values(), self._infos, self._pointed):
            if publisher is not None:
                self._node.destroy_publisher(publisher)
        if self._info_source is not None:
            self._node.destroy_subscription(self._info_source)
