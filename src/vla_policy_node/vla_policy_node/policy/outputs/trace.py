"""The predicted trace: the way of the tool in the first camera's image, as the model predicts it with each chunk."""

from typing import Any

from vla_model.policy import TRACE
from vla_msgs.msg import VisualTrace
from vla_policy_node.policy.outputs.base import Context, Output
from vla_policy_node.policy.session import Answer
from vla_policy_node.ros import qos
from vla_policy_node.ros.chunk_msg import to_time
from vla_policy_node.ros.trace_msg import trace_msg


class TraceOutput(Output):
    """Publishes `~/trace` with each chunk that has a trace, in pixels of the camera's image."""

    name = TRACE

    def __init__(self, context: Context, settings: Any) -> None:
        super().__init__(context, settings)
        self._topic = self.publisher(VisualTrace, '~/trace', qos.STATUS)

    def delivered(self, answer: Answer) -> None:
        trace = answer.prediction.trace
        if trace is not None and self._topic.get_subscription_count() > 0:
            stamp, frame = to_time(answer.aligned.t_ref), self.context.frames.get(trace.camera, '')
            self._topic.publish(trace_msg(stamp, frame, VisualTrace.PREDICTED, trace))
