"""The doctor's lines on engines: each with the verdict of its trial, and what 'auto' takes here."""

from collections.abc import Iterator
from pathlib import Path

from vla_bringup.doctor.check import Check, bad, skip, warn

LEFT_OUT = "'auto' leaves it out; another version of its library may mend it; ./vla doctor --again tries it again"


def check_engines(model: str | Path, again: bool = False) -> Iterator[Check]:
    """Tries what was not tried yet, or everything again, in a process of its own, on the model and default threads.

    Each trial is bounded, see vla_model.engines.trial.
    """
    import torch

    from vla_model.engines import image as images
    from vla_model.engines import select as engines
    from vla_model.engines.choice import choose
    from vla_model.engines.subject import set_threads, trial_subject
    from vla_model.engines.trial import ENGINE, IMAGES, PASSED, Candidate, verdicts

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
            what = 'codes' if candidate.part == IMAGES else 'logits'
            pace = f'{verdict.ms:.1f} ms, {1 / verdict.share:.1f} times as fast as eager'
            yield Check(name, f'{pace}, {what} {100 * verdict.error:.1f} % off')
        else:
            yield skip(name, verdict.why)
    try:
        choice = choose(subject, 'auto', 'auto', 'auto')
    except ValueError as error:
        yield bad('auto', str(error), 'give engine eager and image_engine eager')
        return
    yield Check('auto', f'engine {choice.engine}, image_engine {choice.image_engine} in {choice.image_dtype}')
