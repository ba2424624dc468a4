"""Drivers in the loop: what reaches a policy and when its chunks arrive."""

from pathlib import Path

import numpy as np
import pytest

from vla_core.motion.executor import ChunkExecutor, Hold
from vla_core.profile import RobotProfile
from vla_model.policy import Prediction
from vla_model.types import Chunk
from vla_sim.expert import Expert
from vla_sim.rollout import ExpertDriver, PolicyDriver, run_episode
from vla_sim.tasks import TASKS
from vla_sim.world import World

PROFILE = RobotProfile.load(Path(__file__).parents[2] / 'vla_bringup/config/robots/sim_panda.yaml')
SECOND = 1_000_000_000


class StandIn:
    """Acts like a good policy: chunks of the expert, which looks at the world behind the policy's back."""

    def __init__(self, world, asks=''):
        self.world, self.asks = world, asks
        self.expert = Expert(PROFILE, dt=0.1, horizon=8)
        self.seen = []

    def act(self, observation, prefix=None):
        if not self.seen or observation.instruction != self.seen[-1].instruction:
            self.expert.begin(self.world.task, self.asks or observation.instruction)
        self.seen.append(observation)
        objects = self.world.objects()
        return Prediction(
            self.expert.plan(observation.t_ref, observation.positions, observation.gripper, objects).chunk
        )


class Still:
    """Stays where it is."""

    def act(self, observation, prefix=None):
        return Prediction(Chunk(np.tile(observation.positions, (8, 1)), np.full(8, 0.08), 0.1))


@pytest.fixture(scope='module')
def worlds():
    made: dict[str, tuple] = {}

    def world(task):
        if task not in made:
            w = World(task, image_size=64)
            made[task] = w, w.cameras()
        return made[task]

    yield world
    for _, cameras in made.values():
        cameras.close()


def run(world, driver, seed, **options):
    return run_episode(world, driver, ChunkExecutor(PROFILE), seed, **options)


@pytest.mark.parametrize('task', TASKS)
def test_a_good_policy_succeeds_in_spite_of_latency(worlds, task):
    world, cameras = worlds(task)
    policy = StandIn(world)
    result = run(world, PolicyDriver(policy, cameras, period=0.2, latency=0.15), 5)
    assert result.success and result.missed == '' and result.wrong == '' and result.refused == 0
    assert len(result.seams) > 10 and max(result.seams) < 0.03
    assert result.chunks == len(policy.seen)
    # It is over soon after success: a policy does not say that it is done.
    assert result.duration < 14.0
    assert np.unique(np.diff([seen.t_ref for seen in policy.seen])).tolist() == [SECOND // 5]
    seen = policy.seen[0]
    assert set(seen.images) == {'front', 'wrist'} and seen.images['front'].shape == (64, 64, 3)
    assert seen.positions.shape == seen.velocities.shape == (7,) and seen.instruction == world.instruction


def test_a_policy_that_does_nothing_fails_and_the_stage_shows_where(worlds):
    world, cameras = worlds('fill_bowl')
    result = run(world, PolicyDriver(Still(), cameras), 5, time_limit=2.0)
    assert not result.success and result.missed == 'reach' and result.wrong == ''
    assert result.duration == pytest.approx(2.0)


def test_an_arm_that_leans_on_the_table_is_let_go_and_its_episode_is_over(worlds):
    class Down:  # with the shoulder, through the table
        sent = None

        def act(self, observation, prefix=None):
            self.sent = observation.positions if self.sent is None else self.sent + 0.08 * (np.arange(7) == 1)
            steps = np.linspace(0.0, 0.32, 8)[:, None] * (np.arange(7) == 1)
            return Prediction(Chunk(self.sent + steps, np.full(8, 0.08), 0.1))

    world, cameras = worlds('press_button')
    errors = []

    def watch(world, _):
        errors.append(float(np.abs(world.joint_positions - executor.course.buffer.sample(np.zeros(1))[0][0]).max()))

    executor = ChunkExecutor(PROFILE)
    result = run_episode(world, PolicyDriver(Down(), cameras), executor, 5, time_limit=8.0, watch=watch)
    assert executor.hold is Hold.BLOCKED
    assert 'an obstacle is in the way' in result.messages[-1]
    assert result.duration < 8.0 and not result.success
    assert 0.1 < max(errors) < 0.2
    assert errors[-1] < 0.1


def test_the_wrong_object_is_noticed(worlds):
    world, cameras = worlds('press_button')
    world.reset(5)
    other = next(p.name for p in world.episode.placements if p.name != world.episode.goal.object).split('_')[0]
    policy = StandIn(world, asks=f'press the {other} button')
    result = run(world, PolicyDriver(policy, cameras), 5, time_limit=8.0)
    assert not result.success and result.wrong == f'pressed the {other} button'

    world, cameras = worlds('stack_block')
    world.reset(5)
    goal = world.episode.goal
    other = next(p.name for p in world.episode.placements if p.name not in (goal.object, goal.target)).split('_')[0]
    target = goal.target.split('_')[0]
    policy = StandIn(world, asks=f'stack the {other} block on the {target} block')
    result = run(world, PolicyDriver(policy, cameras), 5, time_limit=8.0)
    assert not result.success and result.wrong == f'lifted the {other} block'

    policy = StandIn(world, asks=f'stack the {goal.object.split("_")[0]} block on the {other} block')
    result = run(world, PolicyDriver(policy, cameras), 5, time_limit=14.0)
    assert not result.success and result.wrong == f'put the {goal.object.replace("_", " ")} onto the {other} block'
    assert result.missed == 'carry'


def test_a_chunk_arrives_late_and_stands_for_its_observation(worlds):
    """The arm begins to move when the first chunk has arrived, not before, and on the chunk's own schedule."""
    world, cameras = worlds('press_button')

    class Mover:
        def act(self, observation, prefix=None):
            found = Still().act(observation)
            found.chunk.positions[:, 0] += 0.04 * (np.arange(8) + 1)
            return found

    for latency in (0.0, 0.1, 0.2):
        targets = []
        driver = PolicyDriver(Mover(), cameras, period=0.2, latency=latency)
        run(world, driver, 1, time_limit=0.5, watch=lambda w, _, t=targets: t.append(w._controller.target[0][0]))
        first = next(i for i, q in enumerate(targets) if q != targets[0])
        assert round(latency * 100) <= first <= round(latency * 100) + 1


def test_another_instruction_in_the_same_scene(worlds):
    world, _ = worlds('press_button')
    world.reset(5)
    other = next(p.name for p in world.episode.placements if p.name != world.episode.goal.object).split('_')[0]
    result = run(world, ExpertDriver(Expert(PROFILE)), 5, instruction=f'hit the {other} button')
    assert result.success and result.instruction == f'hit the {other} button'


@pytest.mark.parametrize(
    ('period', 'latency', 'message'), [(0.15, 0.08, 'multiple of 100 ms'), (0.2, 0.3, '0 to the period')]
)
def test_times_that_do_not_fit_are_refused(worlds, period, latency, message):
    with pytest.raises(ValueError, match=message):
        PolicyDriver(Still(), worlds('press_button')[1], period, latency)
