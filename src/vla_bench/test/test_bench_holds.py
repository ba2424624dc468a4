"""The page of ./vla bench holds."""

from vla_bench import holds as bench_holds
from vla_bench.fuzz.holds import CASES
from vla_core.motion.states import Hold


def test_the_page_has_a_row_for_each_case_and_the_exit_code_is_right(tmp_path, monkeypatch, capsys):
    case = next(case for case in CASES if case.hold is Hold.OPERATOR_STOP)
    monkeypatch.setattr(bench_holds, 'CASES', (case,))
    page = tmp_path / 'holds.md'
    assert bench_holds.bench_holds(1, page)
    text = page.read_text()
    for kind in bench_holds.CONTROLLERS:
        assert f'| `OPERATOR_STOP` | `~/stop` | {kind} | 2 |' in text
    monkeypatch.setattr(bench_holds.Held, 'within', False)
    assert not bench_holds.bench_holds(1, None)
    assert 'WRONG: fr3, crisp, OPERATOR_STOP' in capsys.readouterr().out.replace('\n', ' ')
