"""An engine that dies, hangs or takes all memory does so in a child process, costs itself only, and is remembered."""

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from vla_model.engines import choice, processor, trial
from vla_model.engines.subject import trial_subject
from vla_model.engines.trial import DIED, ENGINE, HUNG, IMAGES, MEMORY, PASSED, REFUSED, Candidate, Subject, Verdict
from vla_model.families.mmact import loading
from vla_model.loading import LoadOptions

DYING = Path(__file__).with_name('dying')
FLOAT, HALF, INT8 = (Candidate(ENGINE, f'openvino-{p}') for p in ('float32', 'bfloat16', 'int8'))
SUBJECT = Subject({'device': 'cpu', 'dtype': 'float32', 'threads': 1}, 7e6, 'a model')


@pytest.fixture
def deaths(monkeypatch, tmp_path):
    """Sets how engines end the process that makes them, this one included."""
    pytest.importorskip('openvino')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.syspath_prepend(str(DYING))  # a child gets the path of its parent

    def die(**how):
        names = {f'openvino-{precision}': way for precision, way in how.items()}
        monkeypatch.setenv('VLA_TEST_DEATHS', json.dumps(names))

    return die


@pytest.mark.slow
def test_engines_that_die_leave_auto_with_the_next_best_and_are_not_tried_again(deaths, caplog, monkeypatch):
    deaths(bfloat16='SIGFPE', int8='SIGSEGV')
    loaded = loading.load('random-nano', LoadOptions(threads=1, engine='auto'))
    name = loaded.engine.name
    assert name in ('openvino-float32', 'eager')
    for engine, end in (('bfloat16', 'SIGFPE'), ('int8', 'SIGSEGV')):
        sentence = f"engine openvino-{engine} was killed by {end} when it was tried on this machine: engine '{name}' is"
        assert sentence in caplog.text
    monkeypatch.setattr(trial, 'run', lambda *_: pytest.fail('tried again'))
    caplog.clear()
    assert loading.load('random-nano', LoadOptions(threads=1, engine='auto')).engine.name == name
    assert 'engine openvino-bfloat16 was killed by SIGFPE' in caplog.text
    with pytest.raises(ValueError, match=r"openvino-bfloat16 was killed by SIGFPE .*: take engine 'eager' or 'auto'"):
        loading.load('random-nano', LoadOptions(threads=1, engine='openvino-bfloat16'))


def test_an_engine_that_hangs_is_given_up(deaths, monkeypatch):
    deaths(int8='hang')
    monkeypatch.setattr(trial, 'TRYING', 0.5)
    with pytest.raises(ValueError, match=r"openvino-int8 gave no result within 1 s .* take engine 'eager' or 'auto'"):
        loading.load('random-nano', LoadOptions(threads=1, engine='openvino-int8'))


def test_a_model_that_a_child_cannot_load_is_one_error(monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    subject = trial_subject('random-nano')
    broken = Subject({**subject.load, 'reference': str(tmp_path / 'gone')}, 1.0, 'gone')
    with pytest.raises(ValueError, match='cannot be loaded to try engines on it: no checkpoint at'):
        trial.verdicts(broken, [HALF])


@pytest.mark.parametrize(
    ('code', 'late', 'output', 'outcome', 'why'),
    [
        (-signal.SIGFPE, 0, '', DIED, 'was killed by SIGFPE'),
        (-signal.SIGABRT, 0, 'Python aborted', DIED, 'was killed by SIGABRT'),
        (-signal.SIGABRT, 0, 'what(): std::bad_alloc', MEMORY, 'ran out of memory (was killed by SIGABRT)'),
        (-signal.SIGKILL, 0, '', MEMORY, 'ran out of memory (was killed by SIGKILL)'),
        (-signal.SIGKILL, 30.0, '', HUNG, 'gave no result within 30 s'),
        (7, 0, '', DIED, 'ended with exit code 7'),
        (0, 0, '', DIED, 'ended with exit code 0'),
        (-64, 0, '', DIED, 'was killed by SIGRTMAX'),
    ],
)
def test_the_end_of_a_child_is_a_verdict(code, late, output, outcome, why):
    verdict = trial._verdict_of_end(code, late, output)
    assert (verdict.outcome, verdict.why) == (outcome, why) and not verdict.passed and verdict.native


def test_a_user_who_stops_a_trial_gives_no_verdict():
    with pytest.raises(ValueError, match='was killed by SIGINT: start again'):
        trial._verdict_of_end(-signal.SIGINT, 0, '')


@pytest.fixture
def tries(monkeypatch, tmp_path):
    """What was tried, and with which outcome it ends."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    asked, outcome, clock = [], {'is': PASSED}, {'now': 1e9}

    def run(subject, candidates):
        asked.append(list(candidates))
        return {c: Verdict(outcome['is'], when=clock['now']) for c in candidates}

    monkeypatch.setattr(trial, 'run', run)
    monkeypatch.setattr(trial.time, 'time', lambda: clock['now'])
    return asked, outcome, clock


@pytest.mark.parametrize(('outcome', 'auto', 'later', 'named'), [
    (PASSED, 1, 1, 1), (DIED, 1, 1, 1), (REFUSED, 1, 1, 2), (HUNG, 1, 2, 3), (MEMORY, 1, 2, 3),
])  # fmt: skip
def test_what_the_machine_or_the_user_may_have_mended_is_tried_again(tries, outcome, auto, later, named):
    asked, given, clock = tries
    given['is'] = outcome
    for _ in range(2):
        assert trial.verdicts(SUBJECT, [HALF])[HALF].outcome == outcome
    assert len(asked) == auto
    clock['now'] += trial.RETRY + 1
    trial.verdicts(SUBJECT, [HALF])
    assert len(asked) == later
    trial.verdicts(SUBJECT, [HALF], named=True)
    assert len(asked) == named
    trial.verdicts(SUBJECT, [HALF], again=True)
    assert len(asked) == named + 1


def test_another_machine_or_model_is_tried_anew(tries, monkeypatch, tmp_path):
    asked, _, _ = tries
    trial.verdicts(SUBJECT, [HALF])
    trial.verdicts(SUBJECT, [HALF, INT8])  # one is known
    trial.verdicts(Subject(SUBJECT.load, 7e6, 'another model'), [HALF])
    trial.verdicts(Subject({**SUBJECT.load, 'threads': 2}, 7e6, 'a model'), [HALF])
    monkeypatch.setattr(trial, 'cpu_flags', lambda: frozenset({'amx_bf16'}))
    trial.verdicts(SUBJECT, [HALF])
    assert asked == [[HALF], [INT8], [HALF], [HALF], [HALF]]
    (tmp_path / 'vla_model' / trial.FILE).write_text('{"torn')
    trial.verdicts(SUBJECT, [HALF])
    assert len(asked) == 6


def test_the_processor_is_known_by_its_instruction_sets(monkeypatch, tmp_path):
    for flags, amx in (('fpu avx512_bf16 amx_bf16 amx_tile', True), ('fpu avx512_bf16', False)):
        file = tmp_path / 'cpuinfo'
        file.write_text(f'processor\t: 0\nmodel name\t: A Processor\nflags\t\t: {flags}\n\nprocessor\t: 1\n')
        monkeypatch.setattr(processor, 'CPUINFO', file)
        assert processor.cpu_name() == 'A Processor' and processor.has_amx() == amx
        assert processor.cpu_flags() == set(flags.split())
    monkeypatch.setattr(processor, 'CPUINFO', tmp_path / 'gone')
    assert processor.cpu_name() and not processor.has_amx()


def test_the_same_files_are_the_same_model(tmp_path):
    file = tmp_path / 'model.safetensors'
    file.write_bytes(b'12')
    made = [trial.identity_of('m', '{}', None, [file])]
    file.write_bytes(b'123')
    made += [trial.identity_of('m', '{}', None, [file]), trial.identity_of('m', '{"a": 1}', None, [file])]
    made += [trial.identity_of('m', '{}', 1, []), trial.identity_of('m', '{}', 2, [])]
    assert len(set(made)) == 5 and made[3] == trial.identity_of('m', '{}', 1, [])


def _asked(outcomes, asked=None):
    """In the place of trial.verdicts."""

    def ask(subject, candidates, named=False):
        if asked is not None:
            asked.append(list(candidates))
        return {c: outcomes.get(c, Verdict(REFUSED, 'not here')) for c in candidates}

    return ask


def passed(share, error=0.0):
    return Verdict(PASSED, ms=1.0, share=share, error=error)


@pytest.mark.parametrize(
    ('outcomes', 'quantized', 'engine'),
    [
        ({HALF: passed(0.5), INT8: passed(0.3, 0.04)}, False, 'openvino-bfloat16'),  # int8 is too far off
        ({HALF: passed(0.5), INT8: passed(0.3, 0.04)}, True, 'openvino-int8'),
        ({HALF: passed(0.5), FLOAT: passed(0.1)}, False, 'openvino-bfloat16'),  # float32 is not even tried
        ({INT8: passed(0.3, 0.04), FLOAT: passed(0.8)}, False, 'openvino-float32'),
        ({HALF: Verdict(DIED, 'was killed by SIGFPE'), FLOAT: passed(1.2)}, False, 'eager'),
        ({}, False, 'eager'),
    ],
)
def test_auto_is_the_fastest_that_passed_and_is_close(outcomes, quantized, engine):
    pytest.importorskip('openvino')
    found = choice.choose(replace(SUBJECT, quantized=quantized), 'auto', 'float32', 'eager', _asked(outcomes))
    assert (found.engine, found.image_engine, found.image_dtype) == (engine, 'eager', 'float32')
    assert len(found.remarks) == sum(v.native for v in outcomes.values())


def test_image_encoders_are_chosen_by_the_same_rule():
    pytest.importorskip('openvino')
    half, int8 = (Candidate(IMAGES, 'openvino', d) for d in ('bfloat16', 'int8'))
    asked = []
    outcomes = {half: passed(0.4, 0.01), int8: passed(0.3, 0.2), HALF: passed(0.5)}
    found = choice.choose(SUBJECT, 'auto', 'auto', 'auto', _asked(outcomes, asked))
    assert (found.engine, found.image_engine, found.image_dtype) == ('openvino-bfloat16', 'openvino', 'bfloat16')
    assert asked == [[HALF, INT8, half, int8]]  # one process for all
    dead = {half: Verdict(DIED, 'was killed by SIGILL')}
    found = choice.choose(SUBJECT, 'eager', 'auto', 'auto', _asked(dead))
    assert (found.image_engine, found.image_dtype) == ('eager', 'float32')
    assert found.remarks == (
        'image_engine openvino bfloat16 was killed by SIGILL when it was tried on this machine: '
        "image_engine 'eager' in float32 is taken",
    )
    with pytest.raises(ValueError, match=r"no image encoder in bfloat16 is close .* take image_dtype 'float32'; .*ILL"):
        choice.choose(SUBJECT, 'eager', 'bfloat16', 'auto', _asked(dead))
    with pytest.raises(ValueError, match=r"was killed by SIGILL .* take image_engine 'eager' or 'auto'"):
        choice.choose(SUBJECT, 'eager', 'bfloat16', 'openvino', _asked(dead))


def test_eager_needs_no_trial_and_a_named_engine_that_is_refused_reports_why():
    found = choice.choose(SUBJECT, 'eager', 'auto', 'eager', _asked({}, asked := []))
    assert (found, asked) == (choice.Choice(), [])
    with pytest.raises(ValueError, match='not here'):
        choice.choose(SUBJECT, 'openvino-int8', 'float32', 'eager', _asked({}))


def test_large_networks_and_other_precisions_leave_auto_with_eager():
    large = Subject(SUBJECT.load, 2e9, 'large')
    half = Subject({**SUBJECT.load, 'dtype': 'bfloat16'}, 7e6, 'half')
    for subject in (large, half):
        assert choice.choose(subject, 'auto', 'float32', 'eager', _asked({})).engine == 'eager'


def test_a_trial_ends_with_the_process_that_asked_for_it(tmp_path):
    done = subprocess.run(
        [sys.executable, '-m', 'vla_model.engines.trial_child', str(tmp_path), '1'],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1 and not done.stderr
