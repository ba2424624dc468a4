"""Decoders: prompts with masks to tokens. Actions and images are re-masked; text is committed by confidence.

Every decoder is a generator, which yields between the forwards of the network and returns its result at the end. The
caller can run more urgent work there. `run` runs a decoder to its end; `Job` runs it step by step.
"""

import math
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import lru_cache
from typing import Generic, TypeVar

import torch
from torch import Tensor

from vla_model.network import KeyValues
from vla_model.tokens.vocabulary import Vocabulary

T = TypeVar('T')
Steps = Generator[None, None, T]
Tokens = tuple[Tensor, Tensor]  # tokens (n,) int64, and the probability (n,) fp32 of each


@dataclass(frozen=True)
class Sampling:
    """Draws tokens as the reference does, instead of greedy decoding. Equal generators give equal tokens."""

    temperature: float  # of the noise in the choice of re-masked slots; tokens are always drawn at temperature 1
    generator: torch.Generator | None = None  # on the network's device


def action(
    network: Callable[..., Tensor],
    vocabulary: Vocabulary,
    ids: Tensor,
    block: slice,
    given: int = 0,
    steps: int = 1,
    sampling: Sampling | None = None,
    cached: bool = False,
    reused: KeyValues | None = None,
    median: Tensor | None = None,
) -> Steps[Tokens]:
    """Decode the bins of the action block in `steps` forwards.

    network: a `Network` or an `Engine`. ids: (1, T); the N slots of the block are masked but for the first `given`.
    These condition the rest, keep their bins and get probability 1. sampling: None for greedy, deterministic decoding.
    cached: see `KeyValues`. reused: the cache of an earlier prompt, whose `positions` are computed again (one step).
    median: (N,) bool, slots that get the median of their probabilities in the last step, not the mode.
    """
    if given == block.stop - block.start:
        return ids[0, block] - vocabulary.bins_offset, torch.ones(given, device=ids.device)
    codes = slice(vocabulary.bins_offset, vocabulary.size)
    cache = reused or _cache(block, cached and steps > 1)

    def logits(ids: Tensor) -> Tensor:
        return network(ids, block, codes, cache=cache)[0].float()

    temperatures = [sampling.temperature * (1 - (k + 1) / steps) if sampling else 0.0 for k in range(steps)]
    return (yield from _remask(logits, vocabulary.mask, ids, block, codes, temperatures, sampling, median))


def image(
    network: Callable[..., Tensor],
    vocabulary: Vocabulary,
    ids: Tensor,
    block: slice,
    steps: int = 18,
    sampling: Sampling | None = None,
    guidance: float = 0.0,
    unguided: tuple[Tensor, slice] | None = None,
    cached: bool = False,
) -> Steps[Tokens]:
    """Decode the codes of the image block, see `codes`.

    guidance g > 0 uses (1 + g) times the logits of `ids`, minus g times those of `unguided`. `unguided` is the prompt
    without the guiding text, as (ids, block). Guidance doubles the time of a step.
    """
    part = slice(vocabulary.image_offset, vocabulary.image_offset + vocabulary.codes)
    return (yield from codes(network, vocabulary, ids, block, part, steps, sampling, guidance, unguided, cached))


def codes(
    network: Callable[..., Tensor],
    vocabulary: Vocabulary,
    ids: Tensor,
    block: slice,
    part: slice,
    steps: int,
    sampling: Sampling | None = None,
    guidance: float = 0.0,
    unguided: tuple[Tensor, slice] | None = None,
    cached: bool = False,
) -> Steps[Tokens]:
    """Decode a block of codes in `steps` forwards. ids: (1, T); the slots of the block are masked.

    part: of the vocabulary, the ids of these codes. The result counts from its start. guidance, unguided: see `image`.
    """
    if guidance and unguided is None:
        raise ValueError('guidance needs an unguided prompt')
    cache, other_cache = _cache(block, cached), _cache(unguided[1], cached) if unguided else None

    def logits(ids: Tensor) -> Tensor:
        out = network(ids, block, part, cache=cache)[0].float()
        if guidance and unguided is not None:
            other_ids, other_block = unguided[0].clone(), unguided[1]
            other_ids[:, other_block] = ids[:, block]
            out = (1 + guidance) * out - guidance * network(other_ids, other_block, part, cache=other_cache)[0].float()
        return out

    temperatures, temperature = [], sampling.temperature if sampling else 0.0
    for k in range(steps):
        temperature *= 1 - (k + 1) / steps  # cumulative, unlike that of actions
        temperatures.append(temperature)
    return (yield from _remask(logits, vocabulary.mask, ids, block, part, temperatures, sampling))


def _remask(
    logits: Callable[[Tensor], Tensor],
    mask: int,
    ids: Tensor,
    block: slice,
    codes: slice,
    temperatures: list[float],
    sampling: Sampling | None,
    median: Tensor | None = None,
) -> Steps[Tokens]:
    """Decode by MaskGIT: each step decodes all masked slots, and masks the least confident ones again.

    The number of slots that are masked again falls over the steps, by a quarter of a cosine.
    """
    ids = ids.clone()
    masked = ids[0, block] == mask
    tokens = ids[0, block] - codes.start
    probability = torch.ones(len(tokens), device=ids.device)
    # The schedule of the reference counts given slots. In greedy decoding it counts the masked slots only.
    total = torch.full((), len(tokens), device=ids.device) if sampling else masked.sum()
    generator = sampling.generator if sampling else None
    for k, temperature in enumerate(temperatures):
        if k:
            yield
        p = logits(ids).softmax(-1)
        drawn = torch.multinomial(p, 1, generator=generator)[:, 0] if sampling else most_probable(p)
        if median is not None and k + 1 == len(temperatures):
            drawn = torch.where(median, (p.cumsum(-1) < 0.5).sum(-1), drawn)
        tokens = torch.where(masked, drawn, tokens)
        # A token outside this part of the vocabulary is a given one, whose probability is not read.
        chosen = p.gather(1, tokens.clamp(0, p.shape[1] - 1)[:, None])[:, 0]
        probability = torch.where(masked, chosen, probability)
        if k + 1 == len(temperatures) and not sampling:
            break  # the last step masks nothing again
        confidence = torch.where(masked, chosen, torch.finfo(chosen.dtype).max).clamp(min=1e-20).log()
        if sampling:  # noise is drawn even at temperature 0, to keep the random numbers of the reference
            u = torch.zeros_like(confidence).uniform_(generator=generator)
            confidence = confidence + temperature * -(-u.clamp(min=1e-20).log()).clamp(min=1e-20).log()
        again = torch.minimum((total * _share(k + 1, len(temperatures))).floor().long(), masked.sum() - 1).clamp(min=1)
        cut = confidence.sort().values.gather(0, again[None].clamp(max=len(tokens) - 1))
        masked = confidence < cut
        ids[0, block] = torch.where(masked, mask, tokens + codes.start)
    return tokens, probability


def most_probable(p: Tensor) -> Tensor:
    """Return (n,) indices of the largest number of each row of p (n, m); of equal ones, the first."""
    # torch's argmax takes twenty times as long on a CPU, more than all other work between two forwards.
    return torch.from_numpy(p.detach().numpy().argmax(-1)) if p.device.type == 'cpu' else p.argmax(-1)


@lru_cache
def _share(step: int, steps: int) -> float:
    """Return the share of tokens that are masked again after `step`, computed in fp32 on the host."""
    return float(torch.cos(torch.tensor(step / steps) * math.pi * 0.5))


def text(
    network: Callable[..., Tensor],
    vocabulary: Vocabulary,
    ids: Tensor,
    block: slice,
    steps: int = 64,
    threshold: float | None = None,
    stop: bool = True,
    cached: bool = False,
    fixed: bool = False,
) -> Steps[Tokens]:
    """Decode the ids of the text block in at most `steps` forwards (LLaDA, low-confidence re-masking, greedy).

    Each step commits the most confident masked tokens, an equal share of the block. A remainder is spread over the
    first steps. threshold: 0..1; all tokens of at least this probability are committed, too.
    stop: end when all tokens up to an end of text are committed; the result then ends with it. An id of the result is
    the mask where the network chose the mask itself.
    fixed: each forward computes the whole block, as graphs of fixed shape need it, not the masked slots only.
    """
    ids = ids.clone()
    length = block.stop - block.start
    probability = torch.ones(length, device=ids.device)
    everything = slice(0, vocabulary.size)
    cache = _cache(block, cached)
    places = torch.arange(length, device=ids.device)
    masked = ids[0, block] == vocabulary.mask
    for step in range(steps):
        if step:
            yield
        asked = places if fixed else masked.nonzero()[:, 0]
        logits = network(ids, block if fixed else asked + block.start, everything, cache=cache)[0].float()
        p = (logits.max(-1).values.double() - logits.double().logsumexp(-1)).exp()  # in float64, as the reference
        best = ids[0, block].scatter(0, asked, most_probable(logits))
        p = torch.full((length,), -1.0, dtype=p.dtype, device=p.device).scatter(0, asked, p).where(masked, -1)
        quota = length // steps + (step < length % steps)
        chosen = torch.zeros_like(masked).scatter(0, p.topk(quota).indices, True)
        if threshold is not None:
            chosen |= p >= threshold
        chosen &= masked
        ids[0, block] = torch.where(chosen, best, ids[0, block])
        probability = torch.where(chosen, p.float(), probability)
        masked = ids[0, block] == vocabulary.mask
        marks = (masked, ids[0, block] == vocabulary.eos)
        # One copy to the host per step: the first place of a mask, and of an end of text.
        hole, end = torch.stack([torch.where(m, places, length).min() for m in marks]).tolist()
        if stop and end < hole:
            length = end + 1
            break
        if hole == length:
            break
    return ids[0, block][:length], probability[:length]


Allowed = Callable[[list[int]], 'slice | Tensor']  # tokens so far -> ids (a part of the vocabulary) that may follow


def autoregressive(
    network: Callable[..., Tensor],
    vocabulary: int,
    ids: Tensor,
    stop: frozenset[int],
    longest: int,
    allowed: Allowed | None = None,
) -> Steps[Tokens]:
    """Decode the ids that follow the prompt `ids` (1, T) of a causal network, one by one, greedy.

    The first forward computes the prompt, later ones the new tokens. The result ends with the first id of `stop`, or
    has `longest` tokens. vocabulary: its size. allowed: returns the ids that may follow, a slice or (n,) int64; None:
    all. Where one id only is allowed, it is taken without a forward, with probability 1.
    """
    cache = KeyValues(ids.shape[1], capacity=ids.shape[1] + longest)
    tokens, probabilities, seen = list[int](), list[Tensor](), 0  # seen: positions whose keys and values are kept
    one = torch.ones((), device=ids.device)
    while len(tokens) < longest and not (tokens and tokens[-1] in stop):
        some = slice(0, vocabulary) if allowed is None else allowed(tokens)
        first, count = _first_of(some)
        if count == 1:
            token, probability = first, one
        else:
            if seen:
                yield
            cache.positions, end = slice(seen, None), ids.shape[1]
            part = some if isinstance(some, slice) else slice(0, vocabulary)
            logits = network(ids, slice(end - 1, end), part, cache=cache)[0].float()
            if not isinstance(some, slice):
                logits = logits[:, some]
            p, seen = logits.softmax(-1), end
            best = int(most_probable(p))
            token, probability = first + best if isinstance(some, slice) else int(some[best]), p[0, best]
        tokens.append(token)
        probabilities.append(probability)
        ids = torch.cat((ids, ids.new_full((1, 1), token)), 1)
    return torch.tensor(tokens, device=ids.device), torch.stack(probabilities) if tokens else ids.new_zeros(0).float()


def _first_of(some: 'slice | Tensor') -> tuple[int, int]:
    """Return the first allowed id and the number of allowed ids. Raises ValueError where there is none."""
    first, count = (some.start, some.stop - some.start) if isinstance(some, slice) else (-1, len(some))
    if count < 1:
        raise ValueError('no token is allowed to follow: the grammar of the answer has no continuation here')
    return (first if isinstance(some, slice) else int(some[0])), count


def _cache(block: slice, cached: bool) -> KeyValues | None:
    return KeyValues(block.start) if cached else None


def run(steps: Steps[T]) -> T:
    """Run a decoder to its end, and return its result."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


class Job(Generic[T]):
    """Runs a decoder one forward per `step`, which returns True when `result` is set."""

    def __init__(self, steps: Steps[T]):
        self._steps = steps
        self.result: T | None = None
        self.done = False
        self.longest = 0.0  # [s] longest step so far, which bounds the delay of an urgent forward

    @torch.inference_mode()
    def step(self) -> bool:
        """Run one forward. Return True when the job is done; later calls do nothing."""
        if self.done:
            return True
        start = time.perf_counter()
        try:
            next(self._steps)
        except StopIteration as end:
            self.result, self.done = end.value, True
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()  # a step is over when the GPU is free again
        self.longest = max(self.longest, time.perf_counter() - start)
        return self.done

    def run(self) -> T:
        """Run the remaining forwards, and return the result."""
        while not self.step():
            pass
        return self.result  # type: ignore[return-value]


@dataclass(frozen=True)
class Deviation:
    """The difference between a decode with the prefix cache and the exact one."""

    equal: float  # share of equal tokens
    probability: float  # largest difference in probability of an equal token


@torch.inference_mode()
def cache_deviation(decoder: Callable[[bool], Steps[Tokens]]) -> Deviation:
    """Return the deviation of the prefix cache. `decoder(cached)` starts the decode with or without it."""
    (exact, p), (approximate, q) = run(decoder(False)), run(decoder(True))
    n = min(len(exact), len(approximate))
    same = exact[:n] == approximate[:n]
    difference = (p[:n] - q[:n]).abs()[same]
    equal = float(same.sum()) / max(len(exact), len(approximate))
    return Deviation(equal, float(difference.max()) if len(difference) else 0.0)
