"""The outputs of the model beside the chunk, one file each. See docs/how-to/add-an-output.md."""

from vla_policy_node.policy.outputs.base import Output
from vla_policy_node.policy.outputs.depth import DepthOutput
from vla_policy_node.policy.outputs.grounding_points import PointsOutput
from vla_policy_node.policy.outputs.plan import PlanOutput
from vla_policy_node.policy.outputs.predicted_image import ImageOutput
from vla_policy_node.policy.outputs.trace import TraceOutput

OUTPUTS: tuple[type[Output], ...] = (PlanOutput, ImageOutput, PointsOutput, TraceOutput, DepthOutput)
