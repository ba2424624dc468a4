"""./vla bench memory, two rounds: real processes, real DDS. How much memory there is, is not judged."""

import csv
import math

import pytest

from vla_bench.memory import Options, bench_memory, slope


@pytest.mark.slow
def test_each_round_of_each_process_is_a_row(tmp_path):
    assert bench_memory(Options(tmp_path, resets=2, cycles=2))
    rows = list(csv.DictReader((tmp_path / 'memory.csv').open()))
    assert [(row['node'], row['round']) for row in rows] == [
        (node, count) for node in ('sim', 'executor', 'policy') for count in ('1', '2')
    ]
    assert [row['what'] for row in rows[:2]] == ['press_button', 'stack_block']
    for row in rows:
        assert float(row['memory']) > 1 and int(row['threads']) > 1 and int(row['files']) > 3


def test_the_slope_leaves_the_beginning_out():
    assert math.isclose(slope([100.0, 500.0, *(600.0 + 2 * n for n in range(6))]), 2.0)
    assert math.isnan(slope([1.0, 2.0]))
