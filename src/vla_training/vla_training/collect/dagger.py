"""A policy drives first, then the expert takes over: data from the states that a policy reaches (DAgger)."""

import math
from dataclasses import dataclass

import numpy as np

from vla_core.motion.chunk_blending import Seams
from vla_core.motion.executor import ChunkExecutor
from vla_core.profile import RobotProfile
from vla_sim.rendering.cameras import Cameras
from vla_sim.rollout import PolicyDriver, run_episode
from vla_sim.world import World
from vla_training.data.features import FPS

REST = 500  # [ms] for an arm that was led to come to rest


@dataclass(frozen=True)
class Lead:
    """A policy that drives first, so that the expert continues from states that a policy reaches.

    This is DAgger (Ross et al. 2011) with the expert in command after the policy.
    """

    checkpoint: str
    share: float = 0.7  # of the episodes
    seconds: tuple[float, float] = (1.0, 14.0)  # for which it drives
    latency: tuple[float, float] = (0.08, 0.4)  # [s] of its chunks; it gets elsewhere when it is late
    inpaint: float = 0.5  # share of the episodes in which it is given what is under way


class Leader:
    """The policy of a Lead, loaded. Raises FileNotFoundError or ValueError as Drive.load."""

    def __init__(self, lead: Lead, profile: RobotProfile) -> None:
        from vla_training.evaluate.drive import Drive  # brings torch

        self.lead, self.profile = lead, profile
        self.policy = Drive(lead.checkpoint).load(profile)

    def leads(self, world: World, cameras: Cameras, seed: int) -> bool:
        """Drive the episode of this seed for a while, then bring the arm to rest. Return whether it drove.

        False when the seed draws no such episode, or when the policy completed the task: the episode then starts anew.
        """
        rng = np.random.default_rng([seed, 4])
        if rng.random() >= self.lead.share:
            return False
        seconds, latency = rng.uniform(*self.lead.seconds), round(rng.uniform(*self.lead.latency), 2)
        inpaint = bool(rng.random() < self.lead.inpaint)
        period = math.ceil(max(latency, 0.2) * FPS - 1e-6) / FPS  # whole frames
        driver = PolicyDriver(self.policy, cameras, period, latency, inpaint)
        seams = Seams('inpaint' if inpaint else 'weighted', gripper_threshold=self.profile.gripper_max_opening / 2)
        run_episode(world, driver, ChunkExecutor(self.profile, seams=seams), seed, time_limit=seconds)
        world.set_target(world.joint_positions, np.zeros(self.profile.dof))
        world.step(REST)
        if done := world.success():
            world.reset(seed)
        return not done
