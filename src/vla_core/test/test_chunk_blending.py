"""Blending of chunks: weights, time grids, wrap, the gripper's vote, and the part of a chunk that is executed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_core.motion.chunk import StampedChunk
from vla_core.motion.chunk_blending import STRATEGIES, ChunkBlending
from vla_core.motion.path import ChunkPath

NS = 1e9
DOF = 2
BLENDING = ('cross_fade', 'weighted', 'temporal_ensemble')


def chunk(positions, t_ref=0.0, dt=0.1, gripper=(), frozen=0):
    positions = np.asarray(positions, float)
    return StampedChunk(
        t_ref=round(t_ref * NS),
        epoch=1,
        sequence=1,
        source='/p',
        joint_names=('a', 'b'),
        dt=dt,
        horizon=len(positions),
        positions=positions,
        gripper=np.asarray(gripper, float),
        frozen=frozen,
    )


def level(value, horizon=8):
    return np.full((horizon, DOF), float(value))


def due(c):
    return c.t_ref / NS + c.dt * np.arange(1, c.horizon + 1)


def follow(blending, c, now, gripper=None, positions=None):
    """What is to be followed from the chunk's own first step on."""
    positions = c.positions if positions is None else positions
    t_ref, positions, gripper = blending.blend(c, positions, round(now * NS), gripper)
    blending.commit()
    before = round((c.t_ref - t_ref) / NS / c.dt)
    assert 0 <= before <= 3 and abs(c.t_ref - t_ref - before * c.dt * NS) < 10
    return positions[before:], gripper[before:]


# ---- positions


def test_before_its_first_step_a_chunk_runs_as_what_was_followed():
    blending = ChunkBlending('latest')
    rising = np.column_stack([np.arange(8.0) ** 2] * 2)
    follow(blending, chunk(rising), 0.0)
    new = chunk(rising[3:] - 3.0, 0.3)  # the same curve, 3 rad lower
    t_ref, positions, _ = blending.blend(new, new.positions, round(0.35 * NS))
    assert t_ref == new.t_ref - round(0.3 * NS)
    np.testing.assert_allclose(positions[:, 0], [0.0, 0.0, 1.0, *(rising[3:, 0] - 3.0)], atol=1e-9)  # not below 0


def test_a_chunk_that_diverges_starts_with_its_own_steps():
    blending = ChunkBlending('latest')
    follow(blending, chunk(np.column_stack([0.1 * np.arange(1.0, 9.0)] * 2)), 0.0)
    for end, before in ((0.9, 3), (0.3, 0)):  # [rad] of a chunk that continues as before, and of one that stays
        new = chunk(np.linspace(0.4, end, 6)[:, None] * np.ones(2), 0.3)
        t_ref, positions, _ = blending.blend(new, new.positions, round(0.3 * NS), turn=np.full(2, 5.0))
        assert round((new.t_ref - t_ref) / NS / new.dt) == len(positions) - 6 == before


def test_latest_and_inpaint_take_a_chunk_that_continues_the_old_one_as_it_is():
    for strategy in ('latest', 'inpaint'):
        blending = ChunkBlending(strategy)
        follow(blending, chunk(level(0.0)), 0.0)
        new = chunk(np.random.default_rng(0).normal(size=(8, DOF)), 0.2, frozen=2)
        np.testing.assert_array_equal(follow(blending, new, 0.3)[0], new.positions)


@pytest.mark.parametrize('apart, followed', [(0.04, [1.0] * 6), (0.06, [0.5, 0.75, 0.875, 0.9375, 1.0, 1.0])])
def test_an_inpainted_chunk_that_turns_away_at_once_is_followed_step_by_step(apart, followed):
    blending = ChunkBlending('inpaint')
    follow(blending, chunk(level(0.0)), 0.0)  # until 0.8 s
    new = chunk(np.vstack([level(0.0, 2), level(apart, 6)]), 0.2, frozen=2)
    turn = np.full(DOF, 4 * 0.05 / 0.1**2)  # a joint gets 0.05 rad away within a step, and stops there
    t_ref, positions, _ = blending.blend(new, new.positions, round(0.3 * NS), turn=turn)
    positions = positions[round((new.t_ref - t_ref) / NS / new.dt) :]
    np.testing.assert_allclose(positions[:, 0], [0.0, 0.0, *(apart * np.array(followed))], atol=1e-9)


@pytest.mark.parametrize('strategy', ['weighted', 'inpaint'])  # the latter for chunks that do not continue the old one
def test_weighted_is_three_parts_old_and_seven_new_where_both_have_steps_and_continues_from_that(strategy):
    blending = ChunkBlending(strategy)
    follow(blending, chunk(level(0.0)), 0.0)  # until 0.8 s
    positions, _ = follow(blending, chunk(level(1.0), 0.3), 0.4)
    np.testing.assert_allclose(positions[:, 0], [0.7] * 5 + [1.0] * 3)
    positions, _ = follow(blending, chunk(level(1.0), 0.5), 0.6)
    np.testing.assert_allclose(positions[:, 0], [0.91] * 3 + [1.0] * 5)


def test_ensemble_has_the_weights_of_act():
    blending = ChunkBlending('temporal_ensemble', decay=0.5)
    values = (0.0, 1.0, 5.0)
    for k, value in enumerate(values):
        positions, _ = follow(blending, chunk(level(value), 0.2 * k), 0.2 * k)
    # The third ends at 1.2 s, the second at 1.0 s, the first at 0.8 s. Here i = 0 is the oldest one there.
    w = np.exp(-0.5 * np.arange(3))
    np.testing.assert_allclose(positions[0, 0], np.dot(w, values) / w.sum())
    np.testing.assert_allclose(positions[4, 0], np.dot(w[:2], values[1:]) / w[:2].sum())
    np.testing.assert_allclose(positions[7, 0], values[2])


def test_cross_fade_begins_on_the_old_chunk_and_ends_on_the_new_one():
    blending = ChunkBlending('cross_fade', fade_time=0.4)
    follow(blending, chunk(level(0.0, 10)), 0.0)
    positions, _ = follow(blending, chunk(level(1.0, 10), 0.2), 0.35)
    times = due(chunk(level(1.0, 10), 0.2))
    assert (positions[times <= 0.35] == 0.0).all()
    u = np.clip((times - 0.35) / 0.4, 0, 1)
    np.testing.assert_allclose(positions[:, 0], 10 * u**3 - 15 * u**4 + 6 * u**5, atol=1e-12)


def test_cross_fade_is_done_when_the_old_chunk_ends():
    blending = ChunkBlending('cross_fade', fade_time=10.0)
    follow(blending, chunk(level(0.0, 4)), 0.0)  # until 0.4 s
    positions, _ = follow(blending, chunk(level(1.0), 0.1), 0.2)
    assert 0.0 < positions[1, 0] < 1.0  # 0.3 s
    np.testing.assert_allclose(positions[2:, 0], 1.0)


@pytest.mark.parametrize('strategy', BLENDING)
def test_frozen_steps_are_kept(strategy):
    blending = ChunkBlending(strategy)
    follow(blending, chunk(level(0.0)), 0.0)
    positions, _ = follow(blending, chunk(level(1.0), 0.1, frozen=3), 0.25)
    assert (positions[:3] == 1.0).all()
    assert (positions[3] < 1.0).all()


@pytest.mark.parametrize('strategy', ['inpaint', 'cross_fade'])
@pytest.mark.parametrize('delay', [0.03, 0.1, 0.17])
def test_the_path_continues_as_it_is_whenever_the_chunk_arrives(strategy, delay):
    """Also before the first step of the new chunk, and between two: as far as the old chunk is continued."""
    rng, blending = np.random.default_rng(5), ChunkBlending(strategy)
    first = chunk(np.cumsum(rng.normal(size=(12, DOF)), axis=0) * 0.01)
    follow(blending, first, 0.0)
    along = ChunkPath(first.positions, 0.1)
    new = chunk(np.cumsum(rng.normal(size=(12, DOF)), axis=0) * 0.01, 0.4, frozen=2)
    steps = new.positions.copy()
    steps[:2] = along.sample(np.array([0.5, 0.6]))[0]
    t_ref, positions, _ = blending.blend(new, steps, round((0.4 + delay) * NS))
    path = ChunkPath(positions, 0.1)
    now = np.array([0.4 + delay])
    here, there = along.sample(now), path.sample(now - t_ref / NS)
    np.testing.assert_allclose(there[0], here[0], atol=2e-3)
    if delay < new.dt:
        without = ChunkPath(steps, 0.1).sample(now - 0.4)
        assert np.abs(without[0] - here[0]).max() > 5e-3


def test_no_steps_of_a_chunk_that_had_ended_come_before():
    for strategy in ('inpaint', 'cross_fade'):
        blending = ChunkBlending(strategy)
        follow(blending, chunk(level(0.0, 4)), 0.0)
        new = chunk(level(1.0), 0.5, frozen=1)
        assert blending.blend(new, new.positions, round(0.6 * NS))[0] == new.t_ref


@pytest.mark.parametrize('strategy', STRATEGIES)
def test_alone_a_chunk_is_followed_as_it_is(strategy):
    blending = ChunkBlending(strategy)
    first = chunk(np.random.default_rng(1).normal(size=(8, DOF)))
    np.testing.assert_array_equal(follow(blending, first, 0.1)[0], first.positions)
    late = chunk(np.random.default_rng(2).normal(size=(8, DOF)), 0.9)  # the first ended at 0.8 s
    np.testing.assert_array_equal(follow(blending, late, 1.0)[0], late.positions)
    blending.reset()
    other = chunk(np.random.default_rng(3).normal(size=(8, DOF)), 1.0)
    np.testing.assert_array_equal(follow(blending, other, 1.1)[0], other.positions)


@pytest.mark.parametrize('strategy', BLENDING)
def test_what_is_not_followed_does_not_count(strategy):
    blending = ChunkBlending(strategy)
    blending.blend(chunk(level(5.0)), level(5.0), 0)
    new = chunk(level(1.0), 0.1)
    np.testing.assert_array_equal(blending.blend(new, new.positions, 0)[1], new.positions)


grids = st.tuples(
    st.floats(0.0, 0.6),  # t_ref [s]
    st.floats(0.02, 0.2),  # dt [s]
    st.integers(1, 20),  # horizon
    st.integers(0, 3),  # frozen
)


@settings(max_examples=80)
@given(st.sampled_from(BLENDING), st.lists(grids, min_size=2, max_size=6), st.integers(0, 10**6))
def test_on_any_time_grid_the_blend_stays_among_the_chunks(strategy, grids, seed):
    rng, blending, now = np.random.default_rng(seed), ChunkBlending(strategy), 0.0
    received = []
    for t_ref, dt, horizon, frozen in grids:
        c = chunk(rng.uniform(-1, 1, (horizon, DOF)), t_ref, dt, frozen=frozen)
        received.append(c.positions)
        now = max(now, t_ref) + float(rng.uniform(0, 0.1))
        positions, gripper = follow(blending, c, now)
        assert positions.shape == c.positions.shape and gripper.size == 0
        everything = np.vstack(received)
        assert (positions >= everything.min(0) - 1e-9).all() and (positions <= everything.max(0) + 1e-9).all()
        assert (positions[:frozen] == c.positions[:frozen]).all()


@settings(max_examples=60)
@given(st.sampled_from(BLENDING), st.integers(0, 10**6))
def test_chunks_that_agree_are_not_changed_whatever_their_grids_and_delays(strategy, seed):
    """A straight motion, seen by chunks with other t_ref, dt and arrival times: nothing is left to blend."""
    rng, blending = np.random.default_rng(seed), ChunkBlending(strategy)
    slope, t_ref = rng.uniform(-1, 1, DOF), 0.0
    for _ in range(5):
        t_ref += float(rng.uniform(-0.05, 0.2))
        c = chunk(np.zeros((int(rng.integers(2, 16)), DOF)), t_ref, float(rng.uniform(0.02, 0.1)))
        moving = due(c)[:, None] * slope
        positions, _ = follow(blending, c, t_ref + float(rng.uniform(0, 0.3)), positions=moving)
        np.testing.assert_allclose(positions, moving, atol=1e-7)  # t_ref is rounded to 1 ns


@settings(max_examples=60)
@given(
    st.sampled_from(BLENDING), st.floats(-np.pi, np.pi), st.floats(-3.0, 3.0), st.integers(-2, 2), st.integers(-2, 2)
)
def test_a_joint_that_wraps_goes_the_short_way_on_the_new_chunks_turn(strategy, angle, apart, turns, other_turns):
    wrapped, plain = ChunkBlending(strategy, wraps=np.array([True, False])), ChunkBlending(strategy)
    old = level(angle)
    new = level(angle + apart)
    shifted, ahead = old.copy(), new.copy()
    shifted[:, 0] += 2 * np.pi * turns
    ahead[:, 0] += 2 * np.pi * other_turns
    follow(plain, chunk(old), 0.0)
    follow(wrapped, chunk(shifted), 0.0)
    expected, _ = follow(plain, chunk(new, 0.2), 0.3)
    positions, _ = follow(wrapped, chunk(ahead, 0.2), 0.3)
    np.testing.assert_allclose(positions - [2 * np.pi * other_turns, 0], expected, atol=1e-9)


# ---- gripper

OPEN, SHUT = 0.08, 0.0


def test_the_opening_sent_is_that_of_a_chunk_and_the_majority_decides():
    blending = ChunkBlending('temporal_ensemble')
    for k, opening in enumerate((0.07, 0.08, 0.01)):
        _, gripper = follow(blending, chunk(level(0.0), 0.1 * k, gripper=[opening] * 8), 0.1 * k)
    # Two say open, the newest of them 0.08, until the older ends at 0.8 s: then it is one to one, the older ahead.
    np.testing.assert_allclose(gripper, [0.08] * 7 + [0.01])


def test_weighted_follows_the_new_chunk_and_cross_fade_the_old_one_for_half_of_the_fade():
    for strategy, expected in (('weighted', [SHUT] * 8), ('cross_fade', [OPEN] * 3 + [SHUT] * 5)):
        blending = ChunkBlending(strategy, fade_time=0.4)
        follow(blending, chunk(level(0.0), gripper=[OPEN] * 8), 0.0)
        _, gripper = follow(blending, chunk(level(0.0), 0.0, gripper=[SHUT] * 8), 0.15, OPEN)
        np.testing.assert_allclose(gripper, expected)


@pytest.mark.parametrize('strategy', STRATEGIES)
def test_an_opening_within_the_dead_band_changes_nothing(strategy):
    blending = ChunkBlending(strategy, gripper_threshold=0.04, gripper_band=0.01)
    ambiguous = [0.036, 0.044, 0.04, 0.038, 0.042, 0.044, 0.036, 0.04]
    assert (blending.blend(chunk(level(0), gripper=ambiguous), level(0), 0, SHUT)[2] == SHUT).all()
    assert (blending.blend(chunk(level(0), gripper=ambiguous), level(0), 0, OPEN)[2] == OPEN).all()
    clear = [0.036, 0.044, 0.03, 0.044, 0.036, 0.05, 0.036, 0.02]
    _, _, gripper = blending.blend(chunk(level(0), gripper=clear), level(0), 0, OPEN)
    np.testing.assert_allclose(gripper, [OPEN, OPEN, 0.03, 0.03, 0.03, 0.05, 0.05, 0.02])


def test_a_chunk_without_gripper_leaves_it_untouched_and_does_not_count():
    blending = ChunkBlending('weighted', old_weight=0.9)
    follow(blending, chunk(level(0.0)), 0.0)
    _, gripper = follow(blending, chunk(level(0.0), 0.1, gripper=[OPEN] * 8), 0.1)
    assert (gripper == OPEN).all()
    assert follow(blending, chunk(level(0.0), 0.2), 0.2)[1].size == 0


@settings(max_examples=60)
@given(st.sampled_from(STRATEGIES), st.integers(0, 10**6))
def test_no_opening_is_made_up(strategy, seed):
    rng, blending, sent = np.random.default_rng(seed), ChunkBlending(strategy), None
    received: set[float] = set()
    for k in range(6):
        openings = rng.choice([0.0, 0.01, 0.037, 0.041, 0.06, 0.08], 8)
        received |= set(openings)
        _, gripper = follow(blending, chunk(level(0.0), 0.15 * k, gripper=openings), 0.15 * k + 0.1, sent)
        assert set(gripper) <= received
        sent = float(gripper[0])


# ---- the part that is executed


def test_execute_horizon_counts_from_the_first_step_that_is_not_past():
    blending = ChunkBlending('latest', execute_horizon=3)
    c = chunk(np.arange(16.0).reshape(8, 2), 1.0, gripper=[OPEN] * 8)
    positions, gripper = follow(blending, c, 1.25)  # steps 0 and 1 are past, 2 to 4 are to be executed
    np.testing.assert_array_equal(positions, c.positions[:5])
    assert len(gripper) == 5
    assert len(follow(blending, c, 1.3)[0]) == 6  # a step due now is past
    assert len(follow(blending, c, 0.95)[0]) == 3
    assert len(follow(blending, c, 1.75)[0]) == 8
    assert len(follow(ChunkBlending('latest'), c, 1.25)[0]) == 8


def test_what_is_cut_off_still_counts_in_the_next_blend():
    blending = ChunkBlending('weighted', execute_horizon=2)
    follow(blending, chunk(level(0.0)), 0.0)
    positions, _ = follow(blending, chunk(level(1.0), 0.4), 0.5)
    np.testing.assert_allclose(positions[:, 0], [0.7] * 3)


@pytest.mark.parametrize(
    ('settings', 'named'),
    [
        ({'strategy': 'best'}, 'best'),
        ({'strategy': 'latest', 'execute_horizon': -1}, 'execute_horizon'),
        ({'strategy': 'cross_fade', 'fade_time': 0.0}, 'fade_time'),
        ({'strategy': 'weighted', 'old_weight': 1.5}, 'old_weight'),
        ({'strategy': 'latest', 'gripper_band': -0.01}, 'gripper_band'),
    ],
)
def test_a_wrong_setting_is_named(settings, named):
    with pytest.raises(ValueError, match=named):
        ChunkBlending(**settings)
