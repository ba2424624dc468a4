"""Makes DAgger episodes: a policy drives first, then the expert takes over from the state that it reached."""

import math
from dataclasses import dataclass

import numpy as np

from vla_core.motion.chunk_blending import ChunkBlending
from vla_core.motion.executor import ChunkExecutor
from vla_core.profile import RobotProfile
from vla_sim.rendering.cameras import Cameras
from vla_sim.rollout import PolicyDriver, run_episode
from vla_sim.world import World
from vla_training.data.features import FPS

REST = 500  # [ms] in which the arm comes to rest after the rollout


@dataclass(frozen=True)
class Dagger:
    """Settings of DAgger (Ross et al. 2011). The policy drives first, then the expert is in command."""

    checkpoint: str
    share: float = 0.7  # of the episodes that the policy starts
    seconds: tuple[float, float] = (1.0, 14.0)  # range of the time for which it drives
    latency: tuple[float, float] = (0.08, 0.4)  # [s] range for its chunks; late chunks reach other states
    inpaint: float = 0.5  # share of its episodes in which it is given the action prefix


class RolloutPolicy:
    """The loaded policy of DAgger episodes."""

    def __init__(self, dagger: Dagger, profile: RobotProfile) -> None:
        """Load the checkpoint. Raises FileNotFoundError or ValueError as Drive.load."""
        from vla_training.evaluate.drive import Drive  # brings torch

        self.dagger, self.profile = dagger, profile
        self.policy = Drive(dagger.checkpoint).load(profile)

    def drive(self, world: World, cameras: Cameras, seed: int) -> bool:
        """Drive the episode of this seed for a while, then bring the arm to rest. Return whether it drove.

        False when the seed draws no such episode, or when the policy completed the task: the episode then starts anew.
        """
        rng = np.random.default_rng([seed, 4])
        if rng.random() >= self.dagger.share:
            return False
        seconds, latency = rng.uniform(*self.dagger.seconds), round(rng.uniform(*self.dagger.latency), 2)
        inpaint = bool(rng.random() < self.dagger.inpaint)
        period = math.ceil(max(latency, 0.2) * FPS - 1e-6) / FPS  # whole frames
        driver = PolicyDriver(self.policy, cameras, period, latency, inpaint)
        blending = ChunkBlending(
            'inpaint' if inpaint else 'weighted', gripper_threshold=self.profile.gripper_max_opening / 2
        )
        run_episode(world, driver, ChunkExecutor(self.profile, blending=blending), seed, time_limit=seconds)
        world.set_target(world.joint_positions, np.zeros(self.profile.dof))
        world.step(REST)
        if done := world.success():
            world.reset(seed)
        return not done
