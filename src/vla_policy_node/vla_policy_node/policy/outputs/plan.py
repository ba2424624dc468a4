"""The plan: the model's own words about the task, from which goals read the sub-task and the progress."""

from typing import Any

from rclpy.node import Node
from std_msgs.msg import String

from vla_model.policy import PLAN, PlanOptions
from vla_model.tokens.prompt_texts import progress
from vla_model.types import Plan
from vla_policy_node.policy.outputs.base import (
    Context,
    DecodedOutput,
    DecodeSettings,
    Owner,
    declare_cached,
    declare_rate,
)
from vla_policy_node.ros import qos
from vla_policy_node.ros.parameters import declare


class PlanOutput(DecodedOutput[Plan]):
    """Publishes `~/plan_text`: the newest plan for the instruction in force, '' when there is none."""

    name, label = PLAN, 'plan'
    kind, topic, profile = String, '~/plan_text', qos.LATCHED

    @classmethod
    def declare(cls, node: Node) -> DecodeSettings:
        rate = declare_rate(node, cls.label, 'plan texts')
        tokens = declare(
            node, 'plan_tokens', 0, 'longest plan text [tokens]; 0: that of the checkpoint', low=0, high=1024
        )
        steps = declare(
            node,
            'plan_steps',
            0,
            'most forwards per plan text, not more than plan_tokens; 0: that of the checkpoint',
            low=0,
            high=1024,
        )
        threshold = declare(
            node,
            'plan_threshold',
            0.9,
            'each forward keeps all tokens that are at least so probable, beside its share',
            low=0.0,
            high=1.0,
        )
        if 0 < tokens < steps:
            raise ValueError(
                f'plan_steps is {steps}, more than plan_tokens, which is {tokens}: a forward writes at least one token'
            )
        return DecodeSettings(rate, PlanOptions(tokens, steps, threshold, declare_cached(node)))

    def __init__(self, context: Context, settings: DecodeSettings) -> None:
        super().__init__(context, settings)
        self._text = ''

    def publish(self, owner: Owner, result: Plan) -> None:
        self._show(result.text)

    def forget(self) -> None:
        if self._text:  # the topic is latched: the plan of the instruction before must not stay there
            self._show('')

    def fill_feedback(self, msg: Any) -> None:
        msg.plan_text, msg.progress = self._text, progress(self._text)

    def _show(self, text: str) -> None:
        self._text = text
        self.out.publish(String(data=text))
