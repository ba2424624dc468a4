"""./vla bench overhead, for two seconds: real processes, real DDS. What the times are is not judged."""

import json

import pytest

from vla_bench.overhead import TARGET, Options, bench_overhead


@pytest.mark.slow
def test_chunks_are_timed_from_the_newest_image_on(tmp_path):
    good = bench_overhead(Options(tmp_path, seconds=2.0))
    found = json.loads((tmp_path / 'overhead.json').read_text())
    assert found['chunks'] >= 5 and found['node: ran [% of one core]'] > 0
    for name in ('overhead [ms]', 'model [ms]'):
        times = found[name]
        assert 0 < times['p50'] <= times['p95'] <= times['p99'] <= times['max']
    assert good is (found['overhead [ms]']['p99'] <= TARGET)
