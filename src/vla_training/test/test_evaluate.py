"""Closed-loop evaluation: its books, a policy that is good, one that does not listen, one that knows nothing."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vla_core.profile import RobotProfile
from vla_model.policy import Prediction
from vla_sim.expert import Expert
from vla_sim.tasks import TASKS, parse_instruction, sample_episode
from vla_training.evaluate.drive import Drive
from vla_training.evaluate.evaluate import CONTRAST_SEED, FIRST_SEED, Worker, evaluate, jobs_of, quick
from vla_training.evaluate.records import CONTRAST, HELD_OUT, Record, RecordFile, Share
from vla_training.evaluate.report import contrast_rows, failure_rows, keep, success_rows, write_report

PROFILE = RobotProfile.load(Path(__file__).parents[2] / 'vla_bringup/config/robots/sim_panda.yaml')


class StandIn:
    """Acts like a good policy: the expert's chunks, in the model's steps. `deaf`: does what the seed alone asks for."""

    def __init__(self, world, deaf=False):
        self.world, self.deaf, self.last = world, deaf, None
        self.expert = Expert(PROFILE, dt=0.1, horizon=8)

    def act(self, observation, prefix=None):
        now = (self.world.seed, observation.instruction)
        if self.last != now:
            own = sample_episode(self.world.task, self.world.seed).instruction
            self.expert.begin(self.world.task, own if self.deaf else observation.instruction)
            self.last = now
        objects = self.world.objects()
        plan = self.expert.plan(observation.t_ref, observation.positions, observation.gripper, objects)
        return Prediction(plan.chunk)


def record(**values):
    base = Record(HELD_OUT, 'press_button', FIRST_SEED, 'press the red button', True, '', '', 4.0, 20, 0, (0.01,), ())
    return replace(base, **values)


def test_jobs_are_held_out_seeds_and_scenes_with_two_instructions():
    jobs = jobs_of(TASKS, 2, contrasts=2)
    assert len(set(jobs)) == len(jobs) == 2 * 3 + 2 * 2 * 3
    assert jobs[:2] == [
        (HELD_OUT, task, FIRST_SEED, sample_episode(task, FIRST_SEED).instruction) for task in TASKS[:2]
    ]
    pairs = [job for job in jobs if job[0] == CONTRAST]
    for one, other in zip(pairs[::2], pairs[1::2], strict=True):
        assert one[:3] == other[:3] and one[2] >= CONTRAST_SEED
        assert parse_instruction(one[3]) != parse_instruction(other[3])


def test_seeds_of_training_and_unknown_tasks_are_refused():
    with pytest.raises(ValueError, match=f'seeds below {FIRST_SEED} may have been trained on'):
        jobs_of(TASKS, 1, seed=FIRST_SEED - 1)
    with pytest.raises(ValueError, match='are for contrast scenes'):
        jobs_of(TASKS, 2, seed=CONTRAST_SEED - 1, contrasts=1)
    with pytest.raises(ValueError, match='unknown task'):
        jobs_of(['sweep'], 1)


def test_records_survive_a_cut_and_belong_to_one_setting(tmp_path):
    file = RecordFile(tmp_path, {'model': 'a', 'latency': 0.08})
    first, second = record(), record(seed=FIRST_SEED + 1, messages=('x', 'y'))
    file.add(first)
    file.add(second)
    text = file.path.read_text()
    file.path.write_text(text[:-20])  # cut while the second was written
    again = RecordFile(tmp_path, {'model': 'a', 'latency': 0.08})
    assert again.records == [first]
    assert again.missing([first.key, second.key]) == [second.key]
    again.add(second)
    assert RecordFile(tmp_path, {'model': 'a', 'latency': 0.08}).records == [first, second]
    with pytest.raises(ValueError, match=r'other settings \(latency differ\)'):
        RecordFile(tmp_path, {'model': 'a', 'latency': 0.1})
    file.path.write_text(text.replace('"chunks"', '"chunkz"'))
    with pytest.raises(ValueError, match='written by another version'):
        RecordFile(tmp_path, {'model': 'a', 'latency': 0.08})


def test_episodes_of_earlier_versions_are_continued(tmp_path):
    RecordFile(tmp_path, {'model': 'm', 'estimate': 'median', 'seams': 'inpaint'}).add(record())
    facts = {'model': 'm', 'action_decoding': 'median', 'blending': 'inpaint'}
    assert RecordFile(tmp_path, facts).records == RecordFile(tmp_path, facts).records == [record()]


def test_tables_count_the_records(tmp_path):
    records = [
        record(),
        record(seed=FIRST_SEED + 1, success=False, missed='press', wrong='pressed the blue button', refused=2),
        record(seed=FIRST_SEED + 2, success=False, missed='reach'),
        record(task='stack_block', success=False, missed='place'),
        record(group=CONTRAST, seed=CONTRAST_SEED),
        record(group=CONTRAST, seed=CONTRAST_SEED, instruction='press the blue button', success=False, wrong='x'),
        record(group=CONTRAST, seed=CONTRAST_SEED + 1),  # its other half is missing
    ]
    press, stack = success_rows(records)
    assert press == (
        'press_button', '3', '33.3 % (6.1 .. 79.2)', '33.3 % (6.1 .. 79.2)', '4.0 s', '10.0 / 10.0 mrad', '2 of 60'
    )  # fmt: skip
    assert stack[0] == 'stack_block' and stack[4] == '-'
    (row,) = contrast_rows(records)
    assert row[:2] == ('press_button', '1') and row[2].startswith('50.0 %') and row[3].startswith('0.0 %')
    assert ('press_button', 'wrong object', '2') in failure_rows(records)
    assert ('stack_block', 'place', '1') in failure_rows(records)
    write_report(tmp_path, {'model': 'a'}, records, {'On frames': {'action error [rad]': 0.0123456}})
    content = json.loads((tmp_path / 'results.json').read_text())
    assert content['summary'][HELD_OUT]['press_button']['missed'] == {'wrong object': 1, 'reach': 1}
    assert len(content['episodes']) == len(records)
    summary = (tmp_path / 'summary.md').read_text()
    assert '| action error [rad] | 0.01235 |' in summary
    for name in ('success', 'failures', 'seams'):
        assert f'({name}.png)' in summary and Image.open(tmp_path / f'{name}.png').width > 500


def test_a_good_policy_gets_full_marks_and_a_run_is_continued(tmp_path):
    worker = Worker(PROFILE, Drive('stand-in'), policy=StandIn)
    ran = []

    def run(jobs):
        for job in jobs:
            ran.append(job)
            yield worker.run(job)

    arguments = {'profile': PROFILE, 'tasks': ['press_button'], 'contrasts': 1, 'run': run, 'model_id': 'stand-in'}
    evaluate('stand-in', tmp_path, episodes=1, **arguments)
    records = evaluate('stand-in', tmp_path, episodes=2, **arguments)
    worker.close()
    assert len(ran) == len(set(ran)) == len(records) == 2 + 2
    assert all(r.success and not r.wrong for r in records)
    assert max(s for r in records for s in r.seams) < 0.05
    assert not list((tmp_path / 'failures').iterdir())


def test_a_policy_that_ignores_the_instruction_is_found_out(tmp_path):
    worker = Worker(PROFILE, Drive('deaf', time_limit=5.0), sheets=tmp_path, policy=lambda w: StandIn(w, deaf=True))
    jobs = [job for job in jobs_of(['press_button'], 1, contrasts=1) if job[0] == CONTRAST]
    records = [worker.run(job) for job in jobs]
    worker.close()
    assert [r.success for r in records] == [True, False]
    assert [bool(r.wrong) for r in records] == [False, True]
    assert [row[2][:6] for row in contrast_rows(records)] == ['50.0 %']
    sheets = [Image.open(path) for path in tmp_path.iterdir()]
    assert len(sheets) == 1 and all(np.asarray(sheet).std() > 20 for sheet in sheets)


def test_random_weights_get_nothing_in_worker_processes():
    shares = quick('random-nano', PROFILE, episodes=1, tasks=('press_button',), processes=1, time_limit=0.6)
    assert shares == {'press_button': Share(0, 1)}


def test_a_model_that_cannot_drive_this_arm_is_refused_before_anything_runs(tmp_path):
    with pytest.raises(FileNotFoundError):
        evaluate(tmp_path / 'nothing', tmp_path / 'out', PROFILE, episodes=1)
    assert not (tmp_path / 'out').exists()


def test_a_checkpoint_takes_its_numbers_along(tmp_path):
    results, checkpoint, profile = tmp_path / 'results', tmp_path / 'checkpoint', tmp_path / 'robot.yaml'
    results.mkdir()
    checkpoint.mkdir()
    profile.write_text('robot: x\n')
    write_report(results, {'model': 'a', 'engine': 'openvino-int8'}, [record()], {})
    path = keep(results, checkpoint, profile)
    assert path.name == 'evaluation-openvino-int8.json'
    content = json.loads(path.read_text())
    assert content['facts']['model'] == 'a' and 'episodes' not in content
    assert content['summary'][HELD_OUT]['press_button']['episodes'] == 1
    assert (checkpoint / 'robot_profile.yaml').read_text() == profile.read_text()
