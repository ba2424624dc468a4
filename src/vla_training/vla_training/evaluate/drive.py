"""How a checkpoint is loaded and drives the simulated arm."""

from dataclasses import dataclass
from typing import Any

from vla_core.profile import RobotProfile
from vla_model.loading import load
from vla_policy_node.policy.adapt_to_robot import fit
from vla_sim.assets.robot import urdf_text
from vla_sim.scene import CAMERAS


@dataclass(frozen=True)
class Drive:
    """How the policy is loaded and drives. Times [s] of simulation."""

    checkpoint: str  # folder, or random-nano
    latency: float = 0.08  # from the observation to the chunk at the executor: the policy node's 95th percentile
    period: float = 0.2  # between two inferences
    time_limit: float = 30.0  # of an episode
    act_steps: int = 1
    reuse: int = 1  # acts per full forward, see MaskedPolicy.reuse
    estimate: str = 'median'  # of a set-point, see mmact.policy.ESTIMATES
    engine: str = 'eager'
    image_engine: str = 'eager'  # in float32; auto: the fastest, as on the robot
    device: str = 'cpu'
    inpaint: str = 'auto'  # whether the policy is given the action prefix, one of action_prefix.INPAINT
    seams: str = 'inpaint'  # how the executor takes a chunk, one of seams.STRATEGIES

    def load(self, profile: RobotProfile) -> Any:
        """The policy. Raises FileNotFoundError or ValueError, also for one that is made for another robot."""
        policy = load(
            self.checkpoint, self.device, threads=1, engine=self.engine, act_steps=self.act_steps,
            image_engine=self.image_engine, image_dtype='auto', reuse=self.reuse,
            estimate=self.estimate,
        )  # fmt: skip
        return fit(policy, profile, CAMERAS, self.checkpoint, urdf_text)
