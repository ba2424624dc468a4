"""Bags through a model that says the arm stays: whole, damaged, with wrong content; and the numbers of the report."""

import csv
import itertools
import json
import math
import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from typer.testing import CliRunner

from vla_bringup.bags.synthetic import write_bag
from vla_bringup.cli import app
from vla_bringup.replay.driven import ACROSS, DRIVEN, PARTS, UNKNOWN, Events, timeline
from vla_bringup.replay.feed import Feed, load_setup
from vla_bringup.replay.live import NodeSettings, policy_spec
from vla_bringup.replay.measures import PredictedChunk, bootstrap, interpolate, measure, worst
from vla_bringup.replay.offline import Asker, Run, parse_latency, run_offline
from vla_bringup.replay.replay import result
from vla_bringup.replay.report import warnings
from vla_bringup.replay.session import Session
from vla_core.observe.streams import NS
from vla_model.policy import PolicyInfo, Prediction
from vla_model.types import Chunk

SIDE, SECONDS, HORIZON, DT = 32, 2.0, 8, 0.1


class Still:
    """A model that says: stay, `off` [rad] beside it."""

    def __init__(self, model_id='still', off=0.0):
        self.info, self.off = PolicyInfo(model_id, True, ('front', 'wrist'), 7, HORIZON, DT, gripper=True), off

    def prepare(self, instruction):
        pass

    def act(self, observation, prefix=None):
        assert prefix is None
        positions = np.tile(observation.positions + self.off, (HORIZON, 1))
        return Prediction(Chunk(positions, np.full(HORIZON, observation.gripper), DT))

    def warm_up(self):
        pass


@pytest.fixture(autouse=True)
def models(monkeypatch):
    made = {'a': Still('a'), 'b': Still('b', off=0.3)}
    monkeypatch.setattr('vla_bringup.replay.replay.load', lambda name, options: made[str(name)])


@pytest.fixture(scope='session')
def bag(tmp_path_factory):
    path = tmp_path_factory.mktemp('bags') / 'good'
    write_bag(path, SECONDS, compressed=False, side=SIDE)
    return path


def run_command(bag, out, *more, model='a'):
    words = ['replay', str(bag), '--model', model, '--instruction', 'press it', '--out', str(out), *more]
    done = CliRunner().invoke(app, words)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def rows(path):
    with path.open(newline='') as file:
        return list(csv.DictReader(file))


def chunks(bag, **settings):
    """Cycles of a bag without the report, and the session."""
    feed = Feed(bag, load_setup('sim_panda', ''))
    session = Session(feed, rate=settings.pop('rate', 10.0), instruction='press it')
    run = Run('still', session)
    run_offline(feed, session, Asker(run, Still(), **settings))
    return run.cycles, session


def test_a_whole_bag_makes_a_whole_report(bag, tmp_path):
    done = run_command(bag, tmp_path)
    assert done.exit_code == 0, done.output
    assert 'warning' not in done.output.replace('CAMERA_MISSING', '').replace('warning: 1 images without a set:', '')
    page = (tmp_path / 'report.html').read_text()
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert page.count('data:image/jpeg') >= 2  # a worst moment with both cameras
    steps = rows(tmp_path / 'steps.csv')
    t_refs = sorted({int(r['t_ref_ns']) for r in steps})
    assert np.allclose(np.diff(t_refs), 0.1 * NS, atol=2)
    assert len(t_refs) == 20
    # The arm moves as 0.3 sin(t): what was recorded at due, and the error of staying, are known.
    one = next(r for r in steps if int(r['t_ref_ns']) == t_refs[3] and r['step'] == '4')
    t = int(one['due_ns']) / NS
    assert float(one['recorded_panda_joint1']) == pytest.approx(0.3 * math.sin(t), abs=1e-4)
    assert float(one['predicted_panda_joint1']) == pytest.approx(0.3 * math.sin(t_refs[3] / NS), abs=2e-3)
    numbers = json.loads((tmp_path / 'summary.json').read_text())['models'][0]
    assert numbers['error mean'] == pytest.approx(numbers['error if the arm stays'], rel=0.02)
    assert numbers['chunks'] == 20
    by_step = [float(r['error']) for r in rows(tmp_path / 'error_by_horizon.csv')]
    assert by_step == sorted(by_step)


@pytest.mark.parametrize(('storage', 'compressed'), [('mcap', True), ('sqlite3', False), ('sqlite3', True)])
def test_storages_and_compressed_images_give_the_same_cycles(bag, tmp_path, storage, compressed):
    other = tmp_path / 'other'
    write_bag(other, SECONDS, compressed=compressed, side=SIDE, storage=storage)
    expected, _ = chunks(bag)
    found, _ = chunks(other)
    assert [c.t_ref for c in found] == [c.t_ref for c in expected]
    for a, b in zip(found, expected, strict=True):
        assert np.array_equal(a.chunk.positions, b.chunk.positions)


def test_two_models_are_compared_with_an_interval(bag, tmp_path):
    done = run_command(bag, tmp_path, '--against', 'b')
    assert done.exit_code == 0, done.output
    assert 'A is nearer' in done.output
    found = json.loads((tmp_path / 'summary.json').read_text())['comparison']
    low, high = found['95 % interval [mrad]']
    assert 0 < low < found['mean error, second minus first [mrad]'] < high
    assert found['chunks in common'] == 19  # of the last one no step was recorded
    assert {r['model'] for r in rows(tmp_path / 'chunks.csv')} == {'A', 'B'}


@pytest.mark.parametrize('storage', ['mcap', 'sqlite3'])
def test_what_is_whole_of_a_cut_bag_is_replayed_and_the_rest_is_reported(tmp_path, storage):
    path = tmp_path / 'bag'
    write_bag(path, 4 * SECONDS, compressed=False, side=SIDE, storage=storage)
    (path / 'metadata.yaml').unlink()
    (file,) = path.iterdir()
    with file.open('r+b') as f:
        f.truncate(file.stat().st_size * 3 // 4)
    done = run_command(path, tmp_path / 'out')
    assert done.exit_code == 0, done.output
    assert 'warning' in done.output
    assert re.search(r'cannot be read|damaged|was cut', done.output)
    assert 20 < json.loads((tmp_path / 'out/summary.json').read_text())['models'][0]['chunks'] < 80


def test_a_bag_without_metadata_is_whole(bag, tmp_path):
    path = tmp_path / 'bag'
    shutil.copytree(bag, path)
    (path / 'metadata.yaml').unlink()
    assert [c.t_ref for c in chunks(path)[0]] == [c.t_ref for c in chunks(bag)[0]]


def test_nothing_to_replay_is_one_clear_line(tmp_path):
    def fails(path, *more):
        done = run_command(path, tmp_path / 'out', *more)
        assert done.exit_code == 1
        lines = [line for line in done.output.strip().splitlines() if line]
        assert len(lines) == 1, done.output
        return lines[0]

    assert 'there is no bag' in fails(tmp_path / 'none')
    empty = tmp_path / 'empty.mcap'
    empty.write_bytes(b'')
    assert 'is empty' in fails(empty)
    lacking = tmp_path / 'lacking'
    write_bag(lacking, 1.0, compressed=False, side=SIDE, change=lambda topic, k, m: None if 'wrist' in topic else m)
    line = fails(lacking)
    assert 'no wrist received on /wrist/image_raw' in line
    assert '/front/image_raw' in line
    assert '/joint_states' in line
    strange = tmp_path / 'strange'
    write_bag(strange, 1.0, compressed=False, side=SIDE, change=lambda topic, k, m: renamed(m))
    line = fails(strange)
    assert 'robot profile' in line
    assert 'ur5_panda_joint1' in line
    zero = tmp_path / 'zero'
    write_bag(zero, 1.0, compressed=False, side=SIDE, change=lambda topic, k, m: at_time(topic, m, lambda ns: 0))
    assert 'its header.stamp is zero: the driver must stamp its messages' in fails(zero)
    sim = tmp_path / 'sim'
    write_bag(
        sim, 1.0, compressed=False, side=SIDE, change=lambda topic, k, m: at_time(topic, m, lambda ns: ns + 10**18)
    )
    assert 'stamps in simulation time need /clock in the bag' in fails(sim)
    assert '--mode' in fails(lacking, '--mode', 'sideways')
    assert '--latency' in fails(lacking, '--latency', 'long')


def at_time(topic, message, moved, wanted='/image_raw'):
    """The message with another stamp, if its topic ends so. moved: from [ns] to [ns]."""
    if topic.endswith(wanted):
        stamp = message.header.stamp
        ns = moved(stamp.sec * NS + stamp.nanosec)
        stamp.sec, stamp.nanosec = ns // NS, ns % NS
    return message


def renamed(message):
    if hasattr(message, 'name'):
        message.name = [f'ur5_{name}' for name in message.name]
    return message


def test_no_instruction_in_the_bag_is_reported(bag, tmp_path):
    done = CliRunner().invoke(app, ['replay', str(bag), '--model', 'a', '--out', str(tmp_path)])
    assert done.exit_code == 1
    assert 'give --instruction' in done.output


def test_joints_that_are_no_numbers_make_no_chunk_and_are_counted(tmp_path):
    def broken(topic, k, message):
        if topic == '/joint_states' and 50 <= k < 100:
            message.position[2] = math.nan
        return message

    path = tmp_path / 'bag'
    write_bag(path, SECONDS, compressed=False, side=SIDE, change=broken)
    done = run_command(path, tmp_path / 'out')
    assert done.exit_code == 0, done.output
    assert 'not finite' in done.output
    content = json.loads((tmp_path / 'out/summary.json').read_text())
    assert content['bag']['messages_with_wrong_content'] == {'/joint_states': 50}  # the fingers are good
    t = np.array([int(r['t_ref_ns']) for r in rows(tmp_path / 'out/chunks.csv')]) / NS - 100
    assert ((t <= 0.5) | (t >= 1.0)).all()
    assert (t < 0.5).sum() >= 4
    assert (t > 1.0).sum() >= 9


def test_inference_time_passes_over_sets_and_moves_the_seams(bag):
    zero, _ = chunks(bag)
    slow, session = chunks(bag, latency=0.25)
    assert 6 <= len(slow) <= 8 < len(zero)
    assert all(b.t_ref - a.t_ref >= 0.2 * NS for a, b in itertools.pairwise(slow))
    assert all(c.at - c.t_ref >= 0.25 * NS for c in slow)
    assert session.report.kept == len(slow)
    assert parse_latency('0.25') == 0.25


def test_a_model_that_fails_is_reported(bag, tmp_path, monkeypatch):
    class Broken(Still):
        def prepare(self, instruction):
            pass

        def act(self, observation, prefix=None):
            raise RuntimeError('no memory')

    monkeypatch.setattr('vla_bringup.replay.replay.load', lambda name, options: Broken())
    done = run_command(bag, tmp_path)
    assert done.exit_code == 1
    assert 'the model failed each time: no memory' in done.output


# ---- numbers


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=30, unique=True), st.integers(-(10**8), 11 * 10**8))
def test_interpolation_is_numpys_where_there_is_something_on_both_sides(stamps, time):
    stamps = np.array(sorted(stamps), np.int64)
    values = np.cos(stamps / 1e8)[:, None]
    found = interpolate(stamps, values, np.array([time]), max_gap=0.05)[0, 0]
    inside = stamps[0] <= time <= stamps[-1]
    k = int(np.searchsorted(stamps, time))
    if inside and (stamps[k] == time or stamps[k] - stamps[k - 1] <= 0.05 * NS):
        assert found == pytest.approx(np.interp(time, stamps, values[:, 0]), abs=1e-9)
    else:
        assert math.isnan(found)


def predicted(t, position, at=None, horizon=5, dt=0.1):
    steps = np.tile([float(position), 0.0], (horizon, 1))
    return PredictedChunk(round(t * NS), round((t if at is None else at) * NS), steps, np.zeros(horizon), dt)


def driven(arm, opening, **happened):
    """The timeline of made-up events: name of Events -> [(time [s], value)],"""
    events = Events(end=int(arm[0][-1]))
    instruction = happened.pop('instruction', '')
    for name, values in happened.items():
        for t, value in values:
            getattr(events, name).add(round(t * NS), value)
    return timeline(events, arm, opening, np.full(arm[1].shape[1], 2.0), instruction)


def ramp(seconds=2.0, rate=100):
    """Joint 1 is the time; a gripper at rest."""
    stamps = np.arange(0, round(seconds * rate)) * (NS // rate)
    return (stamps, np.stack([stamps / NS, np.zeros(len(stamps))], 1)), (stamps, np.full((len(stamps), 1), 0.04))


EXECUTES, HOLDS = 2, 1


def parts_at(line, times):
    """Name of the part at each of these times [s]."""
    return [PARTS[line.stretches[i].part] for i in line.at(np.round(np.array(times) * NS).astype(np.int64))]


def status(start, end, state, epoch=1):
    """What an executor tells, ten times a second."""
    return [(t, (state, epoch, '/expert')) for t in np.arange(start, end, 0.1)]


def test_driven_is_where_the_executor_executes_before_the_success_with_the_words_in_force():
    arm, opening = ramp(seconds=10)
    told = {
        'executor': status(0, 1, HOLDS) + status(1, 8, EXECUTES),  # then it is silent
        'episodes': [(0.0, '1: press'), (5.0, '2: stack')],
        'words': [(0.0, 'press it'), (5.0, 'stack it')],
        'success': [(0.0, False), (2.0, True), (2.5, False), (4.0, True), (5.0, False)],
    }
    line = driven(arm, opening, **told)
    assert line.by_executor
    names = parts_at(line, [0.5, 1.5, 2.2, 3.0, 4.5, 6.0, 8.5, 9.5])
    success, idle, drives = 'after the success', 'the executor did not execute', 'driven'
    assert names == [idle, drives, drives, drives, success, drives, drives, idle]  # success at 2.0 did not last
    fixed = driven(arm, opening, **told, instruction='stack it')
    assert parts_at(fixed, [1.5, 6.0]) == ['another instruction was in force', drives]
    assert parts_at(driven(arm, opening, **told, instruction='lift it'), [1.5, 6.0]) == [drives, drives]
    # A chunk's steps count to the end of its stretch; what reaches into the next episode is compared with nothing.
    m = measure([predicted(3.75, 0.0), predicted(4.75, 0.0)], arm, opening, line)
    assert [PARTS[p] for p in m.part[0]] == [drives] * 2 + ['steps past the end of the driven stretch'] * 3
    assert [PARTS[p] for p in m.part[1]] == [success] * 2 + [PARTS[ACROSS]] * 3
    seconds = line.seconds(0, 10 * NS)
    assert sum(seconds.values()) == pytest.approx(10, abs=0.02)
    assert seconds[DRIVEN] == pytest.approx(3 + 3.9, abs=0.02)


def test_a_new_epoch_ends_what_a_chunk_is_compared_with():
    arm, opening = ramp()
    line = driven(arm, opening, executor=status(0, 1, EXECUTES) + status(1, 2, EXECUTES, epoch=2))
    m = measure([predicted(0.75, 0.0)], arm, opening, line)
    assert [p == DRIVEN for p in m.part[0]] == [True] * 2 + [False] * 3


def test_without_an_executor_the_motion_of_the_arm_shows_where_it_was_driven():
    arm, opening = ramp(seconds=10)
    arm[1][:, 0] = np.clip(arm[1][:, 0], 2, 6)  # at rest before and after
    arm[1][:, 0] += np.random.default_rng(0).normal(0, 1e-4, len(arm[1]))  # its encoders are not still
    opening[1][800:, 0] = 0.0  # the gripper closes at 8 s
    line = driven(arm, opening, executor=status(0, 10, 0))  # of an executor that is not active
    assert not line.by_executor
    rest = 'the arm was at rest'
    assert parts_at(line, [1.0, 3.0, 5.0, 7.0, 8.0, 9.0]) == [rest, 'driven', 'driven', rest, 'driven', rest]


def test_an_arm_that_was_put_elsewhere_did_not_move_there():
    arm, opening = ramp()
    arm[1][100:, 1] += 1.0  # within 10 ms
    m = measure([predicted(0.75, 0.0), predicted(1.15, 0.0)], arm, opening, driven(arm, opening))
    assert [PARTS[p] for p in m.part[0]] == ['driven'] * 2 + [PARTS[ACROSS]] * 3
    assert (m.part[1] == DRIVEN).all()
    np.testing.assert_allclose(m.still[1], [0.1, 0.2, 0.3, 0.4, 0.5], atol=1e-9)


def test_a_chunk_made_for_new_words_of_an_older_image_counts_nowhere():
    arm, opening = ramp()
    line = driven(arm, opening, words=[(0.0, 'press it'), (1.0, 'stack it')])
    early, right = (replace(predicted(t, 0.0, horizon=2), instruction='stack it') for t in (0.95, 1.05))
    m = measure([early, right], arm, opening, line)
    assert not (m.part[0] == DRIVEN).any()
    assert (m.part[1] == DRIVEN).all()


def test_measures_of_known_chunks():
    arm, opening = ramp()
    line = driven(arm, opening, episodes=[(0.0, 'one'), (0.85, 'two')])
    m = measure([predicted(0.5, 0.5), predicted(0.6, 0.62), predicted(1.8, 1.8)], arm, opening, line)
    np.testing.assert_allclose(m.error[0, :3, 0], [-0.1, -0.2, -0.3], atol=1e-9)
    assert np.isnan(m.error[0, 3:]).all()  # another episode began
    np.testing.assert_allclose(m.norm[1, :2], [0.08, 0.18], atol=1e-9)
    np.testing.assert_allclose(m.still[1, :2], [0.1, 0.2], atol=1e-9)
    assert np.isnan(m.error[2, 2:]).all()  # the bag ended
    np.testing.assert_allclose(m.gripper_error[0, :3], -0.04)
    np.testing.assert_allclose(m.seam, [np.nan, 0.12, np.nan], atol=1e-9)
    assert [PARTS[p] for p in m.part[0]] == [PARTS[DRIVEN]] * 3 + [PARTS[ACROSS]] * 2
    assert (m.part[2] == [DRIVEN, UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN]).all()
    with pytest.raises(ValueError, match='no chunk'):
        measure([], arm, opening, line)


def test_seam_counts_where_the_new_chunk_takes_over():
    arm = np.array([0, NS]), np.zeros((2, 2))
    rising = predicted(0.0, 0.0)
    rising.positions[:] = np.arange(1, 6)[:, None] * 0.1  # position = time
    late = predicted(0.1, 0.0, at=0.25)  # its steps 0 (0.2 s) is past; step 1 is due at 0.3 s
    opening = np.zeros(0, np.int64), np.zeros((0, 1))
    m = measure([rising, late], arm, opening, driven(arm, opening))
    assert m.seam[1] == pytest.approx(0.3, abs=1e-9)
    assert np.isnan(m.gripper_error).all()


@given(hnp.arrays(float, st.integers(1, 60), elements=st.floats(-5, 5)), st.integers(1, 20), st.floats(-3, 3))
def test_bootstrap_holds_the_mean_and_shifts_with_it(values, block, shift):
    mean, low, high = bootstrap(values, block, draws=300)
    assert mean == pytest.approx(values.mean(), abs=1e-9)
    assert values.min() - 1e-6 <= low <= high <= values.max() + 1e-6
    moved = bootstrap(np.append(values, np.nan) + shift, block, draws=300)
    np.testing.assert_allclose(moved, np.array([mean, low, high]) + shift, atol=1e-6)


def test_bootstrap_of_neighbours_that_are_alike_is_wider():
    alike = np.repeat(np.random.default_rng(0).normal(size=20), 10)
    _, low, high = bootstrap(alike, 1)
    _, low_b, high_b = bootstrap(alike, 20)
    assert high_b - low_b > 2 * (high - low)
    assert all(math.isnan(v) for v in bootstrap(np.full(3, np.nan), 2))


def test_worst_moments_lie_apart():
    values, times = np.array([1.0, 5.0, 4.0, np.nan, 3.0]), np.arange(5) * NS // 2
    assert worst(values, times, 3, apart=1.0) == [1, 4]


# ---- clocks that are set back


def set_back_bag(path, back, *, who, with_clock):
    """4 s; after 2 s the clock of `who` is set back by so many s: 'computer', or the topics that end so."""
    step = 102 * NS

    def clock(ns):
        return ns if ns < step else ns - round(back * NS)

    def change(topic, k, message):
        if who == 'computer':
            return at_time(topic, message, clock, wanted='')
        return at_time(topic, message, clock, wanted=who)

    all_of_it = clock if who == 'computer' else lambda ns: ns
    write_bag(
        path,
        4.0,
        compressed=False,
        side=SIDE,
        change=change,
        received=all_of_it if not with_clock else lambda ns: ns,
        clock=all_of_it if with_clock else None,
    )


def measured(path):
    """The numbers of a bag, and what is told of it, in one string."""
    feed = Feed(path, load_setup('sim_panda', ''))
    session = Session(feed, rate=10.0, instruction='press it')
    run = Run('still', session)
    run_offline(feed, session, Asker(run, Still()))
    session.end()
    return result(run, 'still'), ' '.join(warnings(feed.report.as_dict()))


@pytest.mark.parametrize(('back', 'with_clock'), [(0.05, False), (0.3, True), (3.0, False), (3.0, True), (90.0, False)])
def test_a_computer_whose_clock_is_set_back_is_reported_and_its_times_are_not_mixed(tmp_path, back, with_clock):
    set_back_bag(tmp_path / 'bag', back, who='computer', with_clock=with_clock)
    found, told = measured(tmp_path / 'bag')
    size = re.search(r'was set back by ([\d.]+) s', told)
    assert size, told
    assert float(size[1]) == pytest.approx(back, abs=0.03)
    assert re.search(r'after 2\.\d s of the bag, the clock of', told), told
    driven = found.driven
    true = found.measures.due - np.array([c.shift for c in found.run.cycles])[:, None]  # [ns] on the bag's clock
    late = np.array([c.shift > 0 for c in found.run.cycles])
    assert 12 <= late.sum() <= 20
    true = (true + np.where(late, round(back * NS), 0)[:, None]) / NS  # had it not been set back
    known = np.isfinite(driven.norm)
    assert known.sum() > 150
    assert np.abs(driven.recorded[..., 0] - 0.3 * np.sin(true))[known].max() < 1e-3
    assert all((c.at - c.t_ref) < 0.1 * NS for c in found.run.cycles)


@pytest.mark.parametrize(('who', 'back'), [('/joint_states', 0.05), ('/joint_states', 3.0), ('front/image_raw', 0.1)])
def test_one_stream_whose_clock_is_set_back_is_reported_and_its_times_are_not_mixed(tmp_path, who, back):
    set_back_bag(tmp_path / 'bag', back, who=who, with_clock=False)
    found, told = measured(tmp_path / 'bag')
    pattern = rf'after 2\.\d s of the bag, the clock of \w+ on /{who.strip("/")} was set back by {back:.2f}\d s'
    assert re.search(pattern, told), told
    due = (found.measures.due - np.array([c.shift for c in found.run.cycles])[:, None]) / NS
    late = np.array([c.shift > 0 for c in found.run.cycles])[:, None] & ('joint' in who)
    true = 0.3 * np.sin(due + np.where(late, back, 0.0))  # by the clock of the joints as it is then
    known = np.isfinite(found.driven.norm)
    assert known.sum() > 80
    assert np.abs(found.driven.recorded[..., 0] - true)[known].max() < 1e-3


@pytest.mark.parametrize('late', [0.0, 0.7])
def test_a_recorder_on_the_time_of_day_beside_a_simulator_is_no_step_of_a_clock(tmp_path, late):
    """As `ros2 bag record` without --use-sim-time, which finds /clock so many seconds after the cameras."""

    def time_of_day(ns):  # the simulator is slower than that, and not steady
        return 1_800_000_000 * NS + 2 * ns + round(0.2 * NS * math.sin(5 * ns / NS))

    begins = 100 * NS + round(late * NS)
    write_bag(
        tmp_path / 'bag',
        SECONDS,
        compressed=False,
        side=SIDE,
        received=time_of_day,
        clock=lambda ns: ns if ns >= begins else None,
    )
    found, told = measured(tmp_path / 'bag')
    assert 'clock' not in told and 'stamped' not in told and 'STALE' not in told, told
    assert [c.shift for c in found.run.cycles] == [0] * 20
    true = 0.3 * np.sin(found.measures.due / NS)
    known = np.isfinite(found.driven.norm)
    assert np.abs(found.driven.recorded[..., 0] - true)[known].max() < 1e-3


def test_stamps_ahead_of_the_clock_are_reported_however_little(tmp_path):
    path = tmp_path / 'bag'
    write_bag(
        path,
        SECONDS,
        compressed=False,
        side=SIDE,
        change=lambda topic, k, m: at_time(topic, m, lambda ns: ns + NS // 20),
    )
    found, told = measured(path)
    assert 'front on /front/image_raw is stamped 0.049 s ahead of the clock: synchronise the clocks' in told
    assert min(c.at - c.t_ref for c in found.run.cycles) < 0  # what the sentence explains


def test_the_node_of_the_live_mode_encodes_images_as_the_offline_mode_does():
    """`auto` may take an int8 encoder: no chunk of it has the bits of the offline mode."""
    setup = SimpleNamespace(namespace='', cameras={'front': '/f'}, joint_states='/j', gripper_joint_states='')
    settings = NodeSettings('sim_panda', '', 'nano', 'cpu', 'eager', 1, 0, 5.0)
    given = policy_spec(settings, SimpleNamespace(setup=setup)).parameters
    assert (given['image_engine'], given['image_dtype']) == (
        'eager',
        'float32',
    )  # the defaults of vla_model.loading.load
