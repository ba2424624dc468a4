"""Checks of engines: the verdict of each trial, and the choice of 'auto' on this machine."""

from collections.abc import Iterator
from pathlib import Path

from vla_bringup.doctor.check import Check, fail, skip, warn

LEFT_OUT = "'auto' leaves it out; another version of its library may work; ./vla doctor --again repeats the trial"


def check_engines(model: str | Path, again: bool = False) -> Iterator[Check]:
    """Yield a check for each engine of the model on this machine, and one for the choice of 'auto'.

    Engines without a verdict are tried in a child process with the default threads; again: all are tried.
    vla_model.engines.trial bounds each trial.
    """
    import torch

    from vla_model.engines import image as images
    from vla_model.engines import select as engines
    from vla_model.engines.choice import choose
    from vla_model.engines.subject import set_threads, trial_subject
    from vla_model.engines.trial import ENGINE, IMAGES, PASSED, Candidate, verdicts
    from vla_model.loading import scheme_of

    if scheme_of(model):
        yield skip('engines', 'the policy server computes the actions')
        return
    set_threads(0)
    device, dtype = ('cuda', 'bfloat16') if torch.cuda.is_available() else ('cpu', 'float32')
    try:
        subject = trial_subject(model, device, dtype)
        names = [n for n, devices in engines.SUPPORTED.items() if n != 'eager' and dtype in devices.get(device, ())]
        paths = [p for group in images.auto_candidates(device, 'auto') for p in group]
        asked = [Candidate(ENGINE, n) for n in names] + [Candidate(IMAGES, *path) for path in paths]
        large = subject.parameters > engines.AUTO_PARAMETERS and device == 'cpu'
        found = verdicts(subject, [c for c in asked if not (large and c.part == ENGINE)], again=again)
    except (OSError, ValueError) as error:
        yield skip('engines', str(error))
        return
    for candidate in (c for c in asked if c in found):
        verdict = found[candidate]
        name = f'{"images " if candidate.part == IMAGES else ""}{candidate.name} {candidate.dtype}'.strip()
        if verdict.native:
            yield warn(name, verdict.why, LEFT_OUT)
        elif verdict.outcome == PASSED:
            compared = 'codes' if candidate.part == IMAGES else 'logits'
            pace = f'{verdict.ms:.1f} ms, {1 / verdict.share:.1f} times as fast as eager'
            yield Check(name, f'{pace}, {compared} {100 * verdict.error:.1f} % off')
        else:
            yield skip(name, verdict.why)
    try:
        choice = choose(subject, 'auto', 'auto', 'auto')
    except ValueError as error:
        yield fail('auto', str(error), 'set engine eager and image_engine eager')
        return
    yield Check('auto', f'engine {choice.engine}, image_engine {choice.image_engine} in {choice.image_dtype}')
