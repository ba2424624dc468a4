"""./vla bench executor, for two seconds: real processes, real DDS."""

import json

import pytest

from vla_bench.executor import Options, bench_executor


@pytest.mark.slow
def test_the_executor_is_measured_beside_a_busy_policy(tmp_path):
    assert bench_executor(Options(tmp_path, rate=50.0, quick=True))
    content = json.loads((tmp_path / 'executor.json').read_text())
    (row,) = content['rows']
    assert row['collision monitor'] and row['set-points'] > 10 and row['executing share'] > 0
    for name in ('subscriber period', 'node period', 'step', 'ingest'):
        times = row[name]
        assert 0 < times['p50'] <= times['p95'] <= times['p99'] <= times['max']
    assert row['chunks'].get('ACCEPTED', 0) > 0 and row['policy outputs']['chunks'] > 0
    assert set(row['CPU share']) == {'sim', 'executor', 'policy', 'this bench'} and row['CPU share']['executor'] > 0
    assert content['machine']['processor'] in (tmp_path / 'executor.md').read_text()
