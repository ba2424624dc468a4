"""./vla bench policy, one episode with the scripted expert: real processes, real DDS, real time; and going on."""

import json

import pytest

from vla_bench.policy import Options, bench_policy


@pytest.mark.slow
def test_an_episode_is_run_once_and_recorded(tmp_path):
    options = Options(
        ('press_button',), episodes=1, contrasts=0, seed=2_000_000, out=tmp_path, model='expert', listen=True
    )
    assert bench_policy(options)
    records = (tmp_path / 'episodes.jsonl').read_text()
    record = json.loads(records.splitlines()[-1])
    assert record['success'] and not record['wrong'] and 0 < record['duration'] < options.time_limit
    assert 'press_button | 1 | 100.0 %' in (tmp_path / 'summary.md').read_text()
    results = json.loads((tmp_path / 'results.json').read_text())
    assert results['facts']['plans and images'] == 'asked for'
    assert any(set(values) == {'plan texts', 'predicted images'} for values in results['measures'].values())

    assert bench_policy(options)
    assert (tmp_path / 'episodes.jsonl').read_text() == records  # nothing was left to do
