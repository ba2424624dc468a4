"""The motion benchmark: its streams, its contenders, its measures, and a short run of all of it."""

import json
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from vla_bench.motion.contenders import BASELINES, contender
from vla_bench.motion.loop import Loop, close_loop
from vla_bench.motion.motion import Options, bench_motion
from vla_bench.motion.replay import TICK, deviation, measure, replay, requested_path
from vla_bench.motion.report import number, ratios, summaries
from vla_bench.motion.streams import AHEAD, PERIOD, STEP, Grid, Recording, make_stream
from vla_core.clocks import NS
from vla_core.motion.chunk_blending import STRATEGIES
from vla_core.profile import RobotProfile
from vla_sim.motion import minimum_jerk

PROFILE = RobotProfile.load('sim_panda')
GRID = Grid(0.1, 16)


@pytest.fixture(scope='module')
def recording():
    """A smooth move of 3 s by 0.5 rad, and a rest of 1 s."""
    observed = PERIOD * np.arange(20)
    due = observed[:, None] + STEP * np.arange(1, AHEAD + 1)
    there = minimum_jerk(due / 3.0)[:, :, None] * np.full(7, 0.5)
    return Recording('none', 1, PROFILE.home, PROFILE.home + there, np.full(due.shape, 0.08))


def run(name, stream):
    runner = contender(name, PROFILE, TICK)
    motion = replay(runner, stream)
    return motion, measure(motion, PROFILE, runner.interpolation)


# ---- streams


def test_an_observation_has_the_same_error_whatever_the_delay_and_the_grid(recording):
    early, late = (make_stream(recording, PROFILE, 'noisy', GRID, delay) for delay in (0.0, 0.4))
    assert late.period == 0.4 and len(late.chunks) == 10  # it looks again when it has answered
    np.testing.assert_array_equal(early.chunks[4].positions, late.chunks[2].positions)
    fine = make_stream(recording, PROFILE, 'noisy', Grid(0.05, 16), 0.0)
    np.testing.assert_array_equal(early.chunks[4].positions[:8], fine.chunks[4].positions[1::2])


def test_an_inpainted_chunk_keeps_the_prefix_and_ends_near_the_chunk_without_it(recording):
    noisy, inpainted = (make_stream(recording, PROFILE, source, GRID, 0.2) for source in ('noisy', 'inpainted'))
    for before, chunk, free in zip(inpainted.chunks, inpainted.chunks[1:], noisy.chunks[1:], strict=False):
        assert chunk.frozen == 2
        np.testing.assert_allclose(chunk.positions[:2], before.positions[2:4], atol=1e-12)
        np.testing.assert_allclose(chunk.positions[-1], free.positions[-1], atol=1e-4)


def test_chunks_longer_than_recorded_are_refused(recording):
    with pytest.raises(ValueError, match='longer than'):
        make_stream(recording, PROFILE, 'expert', Grid(0.2, 9), 0.0)


# ---- contenders


@pytest.mark.parametrize('name', [*STRATEGIES, 'lerobot', 'clamp'])
def test_chunks_that_agree_are_followed_to_their_end(recording, name):
    motion, result = run(name, make_stream(recording, PROFILE, 'expert', GRID, 0.2))
    np.testing.assert_allclose(motion.positions[-1], PROFILE.home + 0.5, atol=1e-3)
    assert result.refused == 0
    assert result.deviation_max < 2e-3
    assert abs(result.time_lost - (0.1 if name == 'clamp' else 0.0)) < 0.02  # clamp begins each chunk anew: 0.2 - dt


def test_blocking_stands_still_while_it_waits(recording):
    motion, result = run('blocking', make_stream(recording, PROFILE, 'expert', GRID, 0.2))
    np.testing.assert_allclose(motion.positions[-1], PROFILE.home + 0.5, atol=1e-3)
    assert result.chunks == 4 and len(motion.switches) == 6
    assert 0.4 - 0.05 < result.time_lost < 0.6 + 0.05  # two or three waits until the arm is as good as there
    stops = motion.positions[[round((1.8 + t) / TICK) for t in (0.01, 0.1, 0.19)]]  # the first chunk lasts 1.6 s
    np.testing.assert_allclose(stops, stops[:1].repeat(3, axis=0), atol=1e-9)


def test_lerobot_takes_three_parts_of_the_old_chunk_and_goes_straight_between_ticks(recording):
    stream = make_stream(recording, PROFILE, 'noisy', GRID, 0.0)
    motion, _ = run('lerobot', stream)
    # At 0.5 s: chunks of 0, 0.2 and 0.4 s speak for it; steps are 0.1 s, ticks 0.02 s apart.
    zero, one, two = (stream.chunks[k].positions[4 - 2 * k] for k in range(3))
    wanted = 0.3 * (0.3 * zero + 0.7 * one) + 0.7 * two
    np.testing.assert_allclose(motion.positions[500], wanted, atol=1e-9)
    speeds = np.diff(motion.positions[500:521], axis=0)
    np.testing.assert_allclose(speeds, speeds[:1].repeat(20, axis=0), atol=1e-9)


def test_clamp_keeps_to_its_speed(recording):
    far = Recording('none', 1, PROFILE.home - 0.3, recording.positions, recording.gripper)
    motion, result = run('clamp', make_stream(far, PROFILE, 'noisy', GRID, 0.1))
    speeds = np.abs(np.diff(motion.positions, axis=0)) / TICK
    assert (speeds <= 0.8 * PROFILE.velocity * (1 + 1e-6)).all()
    assert result.over_acceleration > 0


def test_ours_keeps_the_limits_where_others_do_not_and_has_the_smallest_seams(recording):
    rows = []
    for source, names in (('noisy', ('latest', *BASELINES)), ('inpainted', ('inpaint',))):
        stream = make_stream(recording, PROFILE, source, GRID, 0.2)
        for name in names:
            result = run(name, stream)[1]
            rows.append({'source': source, 'delay': 0.2, 'contender': name, **vars(result)})
    found = {r['contender']: r for r in summaries(rows)}
    for ours in ('latest', 'inpaint'):
        assert found[ours]['over_velocity'] == found[ours]['over_acceleration'] == found[ours]['over_jerk'] == 0.0
    for r in ratios(list(found.values())):
        if r['contender'] in BASELINES:
            assert r['seam_jerk_p50'] > 10
    assert found['inpaint']['deviation_mean'] < 0.5 * found['latest']['deviation_mean']


# ---- measures


def line(n, begin, end):
    return np.linspace(begin, end, n)


def test_deviation_knows_no_time():
    asked = line(50, [0.0, 0.0], [1.0, 0.0])
    slow_then_fast = np.vstack([line(900, [0.0, 0.0], [0.2, 0.0]), line(20, [0.2, 0.0], [1.0, 0.0])])
    assert max(deviation(slow_then_fast, asked)) < 1e-6


def test_deviation_of_a_parallel_path_is_its_distance():
    mean, largest = deviation(line(300, [0.0, 0.01], [1.0, 0.01]), line(50, [0.0, 0.0], [1.0, 0.0]))
    assert mean == pytest.approx(0.01, rel=1e-3) and largest == pytest.approx(0.01, rel=1e-3)


def test_deviation_counts_going_back_and_cutting_corners():
    asked = line(50, [0.0, 0.0], [1.0, 0.0])
    back = np.vstack([line(100, [0.0, 0.0], [0.6, 0.0]), line(50, [0.6, 0], [0.4, 0]), line(100, [0.4, 0], [1, 0])])
    assert deviation(back, asked)[1] == pytest.approx(
        0.1, abs=0.01
    )  # half of it: the requested path waits in the middle
    corner = np.vstack([line(50, [0, 0], [1, 0]), line(50, [1, 0], [1, 1])])
    assert deviation(line(100, [0, 0], [1, 1]), corner)[1] == pytest.approx(np.sqrt(0.5), abs=0.02)


def test_a_jump_is_seen_in_its_seam_alone(recording):
    stream = make_stream(recording, PROFILE, 'expert', GRID, 0.0)
    positions = np.tile(PROFILE.home, (1000, 1))
    positions[500:, 2] += 0.002
    asked = replay(contender('latest', PROFILE, TICK), stream)
    motion = replace(asked, positions=positions, switches=np.array([0.2, 0.5]), taken=asked.taken[:5])
    result = measure(motion, PROFILE, 'cubic')
    assert result.seam_jerk[0] == 0.0 and result.seam_jerk[1] == pytest.approx(2 * 0.002 / TICK**3)
    assert result.seam_acceleration[1] == pytest.approx(0.002 / TICK**2)
    assert result.seam_speed_step[1] == pytest.approx(0.002 / TICK)
    assert result.over_velocity == 0.0  # 2 rad/s
    assert result.over_acceleration == pytest.approx(2 / 1000)
    assert result.time_lost == np.inf  # it never went where it was to go


def test_a_motion_beyond_all_requests_is_outside(recording):
    asked = replay(contender('lerobot', PROFILE, TICK), make_stream(recording, PROFILE, 'expert', GRID, 0.0))
    assert measure(asked, PROFILE, 'linear').outside < 1e-6
    positions = asked.positions.copy()
    positions[700:710, 3] -= 0.6  # at 0.7 s the joint has done less than 0.1 of 0.5 rad
    reached = asked.positions[700, 3] - PROFILE.home[3]
    outside = measure(replace(asked, positions=positions), PROFILE, 'linear').outside
    assert 0.6 - reached - 0.01 < outside < 0.6


def test_the_requested_path_is_the_newest_answer(recording):
    stream = make_stream(recording, PROFILE, 'noisy', GRID, 0.2)
    motion, _ = run('latest', stream)
    points, due = requested_path(motion, 'linear')
    for k in (1, 5):
        chunk = stream.chunks[k]
        step = chunk.positions[2]  # due 0.3 s after t_ref, 0.1 s after arrival
        nearest = np.abs(points - step).max(axis=1)
        assert nearest.min() < 1e-9
        assert due[nearest.argmin()] == pytest.approx(chunk.t_ref / NS + 0.3)


def test_numbers_are_short():
    assert [number(x) for x in (0.0, 0.012, 2.345, 45.6, 1234.5, 2_345_678.0, float('nan'))] == [
        '0', '0.01', '2.3', '46', '1,230', '2,350,000', '-',
    ]  # fmt: skip


def test_a_short_run_writes_its_report(tmp_path):
    assert bench_motion(Options(tmp_path, ('press_button',), loops=0, quick=True))
    content = json.loads((tmp_path / 'motion.json').read_text())
    assert content['closed loop'] == 'not asked for'
    assert {r['contender'] for r in content['summary']} == {*STRATEGIES, *BASELINES}
    assert content['machine']['processor']
    page = (tmp_path / 'motion.md').read_text()
    assert '### inpainted, delay 0.2 s' in page and '| lerobot |' in page
    assert (tmp_path / 'switch.png').stat().st_size > 10_000 and (tmp_path / 'delays.png').stat().st_size > 10_000


@pytest.mark.slow
def test_everybody_drives_the_same_episodes():
    loop = Loop.make('expert', 'cpu', PROFILE)
    assert loop is not None and Loop.make('random-nano', 'cpu', PROFILE) is None
    rows = close_loop(loop, PROFILE, ('press_button',), (0.2,), 2, 2_000_000, Console(quiet=True))
    assert [r['contender'] for r in rows] == [*STRATEGIES, *(b for b in BASELINES if b != 'blocking')]
    assert all(r['episodes'] == 2 and r['successes'] == len(r['durations']) <= 2 and r['chunks'] > 4 for r in rows)
    assert next(r for r in rows if r['contender'] == 'latest')['successes'] == 2
