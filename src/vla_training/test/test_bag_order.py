"""Messages come in the order of time whatever the order of the file; a clock that was set back is reported."""

import importlib.util
import random
import sys
from pathlib import Path

import numpy as np
import pytest

from vla_training.bag import Damage, messages
from vla_training.bag.order import NS, Times, plan

spec = importlib.util.spec_from_file_location('bags', Path(__file__).parent / 'bags.py')
bags = importlib.util.module_from_spec(spec)
sys.modules['bags'] = bags
spec.loader.exec_module(bags)

T0 = 1_760_000_000.0
RATES = {'joints': 100.0, 'fingers': 30.0, 'front': 30.0, 'wrist': 15.0, 'instruction': 0.2}


def entries(seconds: float = 12.0) -> list[tuple[float, str]]:
    """(time [s], topic), by time: the topics of a robot, out of phase."""
    found = [
        (T0 + k / rate + 0.0007 * i, topic)
        for i, (topic, rate) in enumerate(RATES.items())
        for k in range(int(seconds * rate) or 1)
    ]
    return sorted(found)


def times_of(found: list[tuple[float, str]]) -> Times:
    times = Times()
    for time, topic in found:
        times.add(topic, round(time * NS))
    return times


def set_back(found, after: float, by: float):
    return [(time - by if time >= T0 + after else time, topic) for time, topic in found]


def overtaking(found, most: float, seed: int = 0):
    """Written by threads that overtake one another by up to `most` [s], within topics, too."""
    noise = random.Random(seed)
    keyed = [(time + noise.uniform(0.0, most), time, topic) for time, topic in found]
    return [(time, topic) for _, time, topic in sorted(keyed)]


@pytest.mark.parametrize('by', [0.05, 0.2, 0.5, 1.0, 3.0, 100.0, 1e6])
@pytest.mark.parametrize('disorder', [0.0, 0.005])
def test_a_clock_that_was_set_back_begins_a_period_there(by, disorder):
    found = set_back(overtaking(entries(), disorder), 6.0, by)
    order = plan(times_of(found))
    [cut], [(after, size)] = order.cuts, order.steps
    assert T0 + 5.9 < max(time for time, _ in found[:cut]) < T0 + 6.0
    if not disorder:
        assert max(time for time, _ in found[cut:]) < T0 + 12.0 - by and found[cut][0] == min(found[cut:])[0]
    assert size == pytest.approx(by, abs=0.011) and after == pytest.approx(6.0, abs=0.1)
    assert f'was set back by {size:.3f} s' in order.sentences()[0]


def test_every_step_back_is_found():
    found = set_back(set_back(set_back(entries(), 3.0, 0.5), 6.0, 2.0), 6.5, 40.0)
    order = plan(times_of(found))
    assert [size for _, size in order.steps] == pytest.approx([0.5, 2.0, 40.0], abs=0.011)


@pytest.mark.parametrize(
    'disordered',
    [
        lambda found: sorted(found, key=lambda e: e[1]),  # topic after topic
        lambda found: sorted(found, key=lambda e: (int(e[0] - T0) // 2, e[1])),  # chunk after chunk by topic
        lambda found: random.Random(1).sample(found, len(found)),  # without any order
        lambda found: overtaking(found, 0.05),
        lambda found: overtaking(found, 0.9),
        lambda found: found[:500] + found[520:600] + found[500:520] + found[600:],  # a thread that hung
        lambda found: [*found[:700], (T0 + 1e6, 'joints'), *found[700:]],  # one time that cannot be
        lambda found: [*found[:700], (0.0, 'front'), *found[700:]],
        lambda found: [(t + (3.0 if t > T0 + 6.0 else 0.0), name) for t, name in found],  # set forward
    ],
)
def test_other_disorder_is_no_clock_that_was_set_back(disordered):
    assert not plan(times_of(disordered(entries()))).cuts


@pytest.mark.parametrize('storage', ['mcap', 'sqlite3'])
@pytest.mark.parametrize('damaged', [False, True])
def test_messages_come_by_time_from_a_file_in_the_order_of_topics(tmp_path, storage, damaged):
    by_topic = sorted(bags.recording(), key=lambda entry: (entry[0], entry[2]))
    file = bags.write(tmp_path / 'bag', by_topic, storage)
    if damaged:
        file.write_bytes(file.read_bytes()[: file.stat().st_size * 8 // 10])  # no summary, pages lost
    damage = Damage()
    found = list(messages(tmp_path / 'bag', {entry[0] for entry in by_topic}, damage, lambda read: None))
    assert len(found) >= len(by_topic) * (0.5 if damaged else 1.0) and bool(damage.problems) == damaged
    times = [m.time for m in found]
    assert times == sorted(times) and {m.period for m in found} == {0}
    assert 'were sorted' in damage.order[0]


@pytest.mark.parametrize('storage', ['mcap', 'sqlite3'])
@pytest.mark.parametrize('split', [None, 'at the step', 'before it', 'at once'])
def test_a_clock_set_back_in_a_bag_of_one_or_more_files(tmp_path, storage, split):
    ends = {None: 3.0, 'at the step': 1.5, 'before it': 1.0, 'at once': 0.0}
    found = bags.recording(30)
    back = [(topic, m, time - 0.7 if time > 101.5 else time) for topic, m, time in found]
    cut = next(i for i, e in enumerate(found) if e[2] > 100.0 + ends[split] or i == len(found) - 1)
    folder = tmp_path / 'bag'
    first = bags.write(tmp_path / 'a', back[:cut], storage) if cut else None
    second = bags.write(tmp_path / 'b', back[cut:], storage)
    folder.mkdir()
    for number, file in enumerate(filter(None, (first, second))):
        file.rename(folder / f'bag_{number}{file.suffix}')
    damage = Damage()
    read = list(messages(folder, {entry[0] for entry in found}, damage, lambda n: None))
    assert [round(m.time / NS, 3) for m in read] == [round(time, 3) for _, _, time in back]  # file order = time order
    assert [m.period for m in read] == [int(time > 101.5) for _, _, time in found]
    assert len(damage.order) == 1 and 'was set back by 0.7' in damage.order[0]


def test_files_that_overlap_in_time_are_merged(tmp_path):
    found = bags.recording(30)
    (tmp_path / 'bag').mkdir()
    for number, part in enumerate(('image_raw', '/')):
        own = [e for e in found if ('image_raw' in e[0]) == (part == 'image_raw')]
        file = bags.write(tmp_path / part.strip('/') / 'x', own)
        file.rename(tmp_path / 'bag' / f'bag_{number}.mcap')
    damage = Damage()
    read = list(messages(tmp_path / 'bag', {entry[0] for entry in found}, damage, lambda n: None))
    times = [m.time for m in read]
    assert len(read) == len(found) and times == sorted(times) and {m.period for m in read} == {0}


def test_small_disorder_is_sorted_and_not_worth_a_word(tmp_path):
    found = bags.recording(30)
    noise = random.Random(3)
    bags.write(tmp_path / 'bag', sorted(found, key=lambda e: e[2] + noise.uniform(0.0, 0.03)))
    damage = Damage()
    read = [m.time for m in messages(tmp_path / 'bag', {e[0] for e in found}, damage, lambda n: None)]
    assert len(read) == len(found) and read == sorted(read) and not damage.order
    assert np.all(np.diff(read) >= 0)
