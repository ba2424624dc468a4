"""Defines how a checkpoint is loaded and drives the simulated arm."""

from dataclasses import dataclass

from vla_core.profile import RobotProfile
from vla_model.loading import LoadOptions, load
from vla_model.policy import Policy
from vla_policy_node.policy.adapt_to_robot import adapt_to_robot
from vla_sim.assets.robot import urdf_text
from vla_sim.scene import CAMERAS


@dataclass(frozen=True)
class Drive:
    """Settings of a policy that drives. Times [s] are simulated."""

    checkpoint: str  # folder, or random-nano
    latency: float = 0.08  # from the observation to the chunk at the executor: the policy node's 95th percentile
    period: float = 0.2  # between two inferences
    time_limit: float = 30.0  # of an episode
    act_steps: int = 1  # forwards per chunk
    kv_reuse: int = 1  # chunks per full forward, see LoadOptions
    action_decoding: str = 'median'  # how a set-point is read from its distribution, see LoadOptions
    action_head: str = 'auto'  # source of set-points, see LoadOptions
    engine: str = 'eager'
    image_engine: str = 'eager'  # in float32; auto: the fastest, as on the robot
    device: str = 'cpu'
    inpaint: str = 'auto'  # whether the policy is given the action prefix, one of action_prefix.INPAINT
    blending: str = 'inpaint'  # how the executor blends chunks, one of chunk_blending.STRATEGIES

    def load(self, profile: RobotProfile) -> Policy:
        """Return the policy with chunks of joint set-points of the robot. Raises as `model` and `adapt`."""
        return self.adapt(self.model(), profile)

    def adapt(self, model: Policy, profile: RobotProfile) -> Policy:
        """Return a loaded model adapted to the robot. Raises ValueError for a model of another robot."""
        return adapt_to_robot(model, profile, CAMERAS, self.checkpoint, urdf_text)

    def model(self) -> Policy:
        """Load the checkpoint, not adapted to the robot. Raises FileNotFoundError or ValueError naming the fault."""
        options = LoadOptions(
            self.device,
            threads=1,
            engine=self.engine,
            act_steps=self.act_steps,
            image_engine=self.image_engine,
            image_dtype='auto',
            kv_reuse=self.kv_reuse,
            action_decoding=self.action_decoding,
            action_head=self.action_head,
        )
        return load(self.checkpoint, options)
