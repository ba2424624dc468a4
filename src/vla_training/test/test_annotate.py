"""Plan texts from sub-tasks."""

import json
from dataclasses import dataclass, field

import numpy as np
import pytest

from vla_training.data.annotate import plan_texts, plans, write_records
from vla_training.data.features import COMPLETED, REMAINING, SUBTASK
from vla_training.lerobot import DatasetWriter, Feature


@dataclass
class Frames:
    columns: dict = field(default_factory=dict)
    task: str = 'take it'
    length: int = 0

    def __len__(self):
        return self.length


ALL = ['reach', 'grasp', 'lift']


def episode(current, completed=None, remaining=None):
    columns = {SUBTASK: current}
    if completed is not None:
        columns |= {COMPLETED: completed, REMAINING: remaining}
    return Frames(columns, length=len(current))


def test_distinct_sub_tasks_in_order_of_appearance():
    found = plans(episode(['', 'reach', 'reach', 'grasp', 'lift', 'grasp', '']))
    assert found[0] is None and found[-1] is None
    assert all(p.subtasks == ALL for p in found[1:-1])
    assert [p.finished for p in found[1:-1]] == [[], [], ['reach'], ['reach', 'grasp'], ['reach', 'lift']]
    assert [p.current for p in found[1:-1]] == ['reach', 'reach', 'grasp', 'lift', 'grasp']


def test_what_was_written_down_counts_more():
    found = plans(episode(['grasp', 'lift', ''], ['reach', 'reach; grasp', 'reach; grasp; lift'], ['lift', '', '']))
    assert [(p.subtasks, p.finished, p.current) for p in found] == [
        (ALL, ['reach'], 'grasp'),
        (ALL, ['reach', 'grasp'], 'lift'),
        (ALL, ['reach', 'grasp'], 'lift'),  # all done: the last one stays
    ]


def test_texts_are_those_of_the_prompts():
    texts = plan_texts(episode(['grasp', ''], ['reach', ''], ['lift', '']))
    assert texts == [
        'My task is take it. I need to finish this task by reach, grasp, lift. Currently, I have finished reach. '
        'So now I should continue to grasp.',
        '',
    ]
    assert plan_texts(Frames(length=3)) == [''] * 3


def make(folder, subtasks):
    writer = DatasetWriter(folder, 10, 'r', {'observation.state': Feature('float32', (2,)), SUBTASK: Feature('string')})
    for texts in subtasks:
        writer.add_episode({'observation.state': np.zeros((len(texts), 2), np.float32), SUBTASK: texts}, {}, 'take it')
    writer.close()


def test_a_line_per_annotated_frame(tmp_path):
    make(tmp_path / 'd', [['reach', 'grasp'], ['', 'reach']])
    path, count = write_records(tmp_path / 'd')
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert count == len(lines) == 3
    assert lines[1] == {
        'episode_id': 0,
        'frame_index': 1,
        'task': 'take it',
        'all_subtasks': ['reach', 'grasp'],
        'completed_subtasks': ['reach'],
        'current_subtask': 'grasp',
        'cot_reasoning': 'My task is take it. I need to finish this task by reach, grasp. Currently, I have finished '
        'reach. So now I should continue to grasp.',
    }
    assert (lines[2]['episode_id'], lines[2]['frame_index']) == (1, 1)


def test_the_sub_tasks_of_two_instructions_in_an_episode_are_not_mixed(tmp_path, second_task):
    make(tmp_path / 'd', [['reach', 'grasp', 'open', 'retreat']])
    second_task(tmp_path / 'd', 0, 2, 'let go')
    lines = [json.loads(line) for line in write_records(tmp_path / 'd')[0].read_text().splitlines()]
    assert [(r['frame_index'], r['task'], r['all_subtasks'], r['completed_subtasks']) for r in lines] == [
        (0, 'take it', ['reach', 'grasp'], []),
        (1, 'take it', ['reach', 'grasp'], ['reach']),
        (2, 'let go', ['open', 'retreat'], []),
        (3, 'let go', ['open', 'retreat'], ['open']),
    ]


def test_a_dataset_without_sub_tasks_is_reported(tmp_path):
    make(tmp_path / 'd', [['', '']])
    with pytest.raises(ValueError, match='no sub-tasks'):
        write_records(tmp_path / 'd')
    assert not list((tmp_path / 'd' / 'meta').glob('plans*'))
