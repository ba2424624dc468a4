"""Chooses the engines of a model by the verdicts of their trials, before its weights are in this process."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from vla_model.engines import image as images
from vla_model.engines import select as engines
from vla_model.engines.trial import AGAIN, ENGINE, IMAGES, Candidate, Subject, Verdict, verdicts

Asking = Callable[..., dict[Candidate, Verdict]]  # as `trial.verdicts`
Groups = tuple[tuple[Candidate, ...], ...]  # candidates of a later group are tried where no earlier one is good
EXACT = Candidate(IMAGES, 'eager', 'float32')


@dataclass(frozen=True)
class Choice:
    """The chosen engines, which passed their trial here or need none."""

    engine: str = 'eager'
    image_engine: str = 'eager'
    image_dtype: str = 'float32'
    remarks: tuple[str, ...] = ()  # a sentence for each candidate that died, hung or ran out of memory


def candidates(subject: Subject, engine: str, image_dtype: str, image_engine: str) -> tuple[Groups, Groups]:
    """Return the candidates of engines and of image engines for these options of loading."""
    device = str(subject.load['device']).split(':')[0]
    network: Groups = ()
    if engine == 'auto':
        names = engines.auto_candidates(device, subject.load['dtype'], subject.parameters, subject.options)
        network = tuple(tuple(Candidate(ENGINE, n) for n in group) for group in names)
    elif engine != 'eager':
        network = ((Candidate(ENGINE, engine),),)
    if image_engine == 'auto':
        paths = images.auto_candidates(device, image_dtype)
        return network, tuple(tuple(Candidate(IMAGES, n, d) for n, d in group) for group in paths)
    asked = Candidate(IMAGES, image_engine, 'float32' if image_dtype == 'auto' else image_dtype)
    return network, () if asked == EXACT else ((asked,),)


def choose(subject: Subject, engine: str, image_dtype: str, image_engine: str, ask: Asking = verdicts) -> Choice:
    """Return the engines to make. 'auto' takes the fastest one that passed and is close to eager.

    Eager needs no trial. Raises ValueError with cause and remedy for a named engine that did not pass.
    """
    network, image = candidates(subject, engine, image_dtype, image_engine)
    tried: dict[Candidate, Verdict] = {}

    def verdicts_of(group: tuple[Candidate, ...], named: bool) -> dict[Candidate, Verdict]:
        if missing := [c for c in group if c not in tried]:
            tried.update(ask(subject, missing, named=named))
        return {c: tried[c] for c in group}

    if engine == 'auto' and image_engine == 'auto':  # one process for both
        verdicts_of((*network[0], *image[0]), False)
    name, remarks = engine, list[str]()
    if engine == 'auto':
        limit = engines.auto_error(str(subject.load['device']).split(':')[0], subject.quantized)
        best = _fastest(network, limit, 1.0, verdicts_of)
        name = best.name if best is not None else 'eager'
        remarks += _remarks(network, tried, f'engine {name!r} is taken')
    elif network:
        _demand(network[0][0], verdicts_of)
    if image_engine != 'auto':
        if image:
            _demand(image[0][0], verdicts_of)
        chosen = image[0][0] if image else EXACT
        return Choice(name, chosen.name, chosen.dtype, tuple(remarks))
    exact = image_dtype in ('auto', 'float32')
    found = _fastest(image, 1 - images.AUTO_AGREEMENT, 1.0 if exact else math.inf, verdicts_of)
    if found is None and not exact:
        why = ''.join(f'; {r}' for r in _remarks(image, tried, 'it is not taken'))
        raise ValueError(
            f"no image encoder in {image_dtype} is close to that in float32 here: take image_dtype 'float32'{why}"
        )
    chosen = found or EXACT
    remarks += _remarks(image, tried, f'image_engine {chosen.name!r} in {chosen.dtype} is taken')
    return Choice(name, chosen.name, chosen.dtype, tuple(remarks))


def _fastest(groups: Groups, limit: float, share: float, verdicts_of: Callable) -> Candidate | None:
    """Return the fastest candidate of the first group in which one passes.

    limit: largest error. share: of eager's time, which the fastest must be below.
    """
    for group in groups:
        good = {c: v.share for c, v in verdicts_of(group, False).items() if v.passed and v.error <= limit}
        fastest = min(good, key=good.__getitem__, default=None)
        if fastest is not None and good[fastest] < share:
            return fastest
    return None


def _remarks(groups: Groups, tried: dict[Candidate, Verdict], instead: str) -> list[str]:
    found = {c: tried[c] for group in groups for c in group if c in tried}
    return [f'{c} {v.why} when it was tried on this machine: {instead}' for c, v in found.items() if v.native]


def _demand(candidate: Candidate, verdicts_of: Callable) -> None:
    """Raise ValueError unless the candidate passed its trial."""
    verdict = verdicts_of((candidate,), True)[candidate]
    if verdict.native:
        raise ValueError(
            f'{candidate} {verdict.why} when it was tried on this machine in a process of its own: take '
            f"{candidate.part} 'eager' or 'auto', or try it again with {AGAIN}"
        )
    if not verdict.passed:
        raise ValueError(verdict.why)
