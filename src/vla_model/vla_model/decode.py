"""From a prompt with masks to tokens: actions and images by re-masking, text block by block of confidence.

Every decoder is a generator: it yields between the forwards of the network, so that a caller can do something more
urgent there, and returns its result at the end. `run` drives one to the end, `Job` keeps one for later.
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
Tokens = tuple[Tensor, Tensor]  # (n,) int64 and the probability (n,) fp32 that the network gave each of them


@dataclass(frozen=True)
class Sampling:
    """Draw tokens as the reference does, instead of taking the most probable ones. Same generator, same tokens."""

    temperature: float  # of the noise on what is masked again; tokens are always drawn at temperature 1
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
    """Bins of the action block, in `steps` forwards.

    ids (1, T) with the block's N slots masked but for the first `given`: those are committed, they condition the rest,
    keep their bins and get probability 1. Without `sampling` it is greedy: the same for the same input. `cached`: see
    `KeyValues`. reused: the cache of an earlier prompt; its `positions` are computed again (one step only). median (N,)
    bool: of these slots the last step gives the median of what the network says, not the most probable bin.
    network: a `Network` or an `Engine`.
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
    """Codes of the image block, in `steps` forwards. ids (1, T) with the block's slots masked.

    guidance g > 0: (1 + g) times the logits of `ids` minus g times those of `unguided`, a prompt (ids, its block) that
    lacks what is to be guided by. That doubles the work of a step.
    """
    if guidance and unguided is None:
        raise ValueError('guidance needs an unguided prompt')
    codes = slice(vocabulary.image_offset, vocabulary.image_offset + vocabulary.codes)
    cache, other_cache = _cache(block, cached), _cache(unguided[1], cached) if unguided else None

    def logits(ids: Tensor) -> Tensor:
        out = network(ids, block, codes, cache=cache)[0].float()
        if guidance and unguided is not None:
            other_ids, other_block = unguided[0].clone(), unguided[1]
            other_ids[:, other_block] = ids[:, block]
            out = (1 + guidance) * out - guidance * network(other_ids, other_block, codes, cache=other_cache)[0].float()
        return out

    temperatures, temperature = [], sampling.temperature if sampling else 0.0
    for k in range(steps):
        temperature *= 1 - (k + 1) / steps  # cumulative, unlike that of actions
        temperatures.append(temperature)
    return (yield from _remask(logits, vocabulary.mask, ids, block, codes, temperatures, sampling))


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
    """MaskGIT: decode all, mask the least confident again, fewer in every step after the quarter of a cosine."""
    ids = ids.clone()
    masked = ids[0, block] == mask
    tokens = ids[0, block] - codes.start
    probability = torch.ones(len(tokens), device=ids.device)
    # The reference counts what was given as decoded already. Greedy, the schedule is that of what there is to decode.
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
        # What is no token of this block's part of the vocabulary was given; it is never looked up.
        chosen = p.gather(1, tokens.clamp(0, p.shape[1] - 1)[:, None])[:, 0]
        probability = torch.where(masked, chosen, probability)
        if k + 1 == len(temperatures) and not sampling:
            break  # nobody asks what would be masked again
        confidence = torch.where(masked, chosen, torch.finfo(chosen.dtype).max).clamp(min=1e-20).log()
        if sampling:  # drawn even at temperature 0: the reference's stream of random numbers
            u = torch.zeros_like(confidence).uniform_(generator=generator)
            confidence = confidence + temperature * -(-u.clamp(min=1e-20).log()).clamp(min=1e-20).log()
        again = torch.minimum((total * _share(k + 1, len(temperatures))).floor().long(), masked.sum() - 1).clamp(min=1)
        cut = confidence.sort().values.gather(0, again[None].clamp(max=len(tokens) - 1))
        masked = confidence < cut
        ids[0, block] = torch.where(masked, mask, tokens + codes.start)
    return tokens, probability


def most_probable(p: Tensor) -> Tensor:
    """(n,) index of the largest number of each row of p (n, m); the first one of equals."""
    # torch's own takes twenty times as long on a CPU: more than all else between two forwards.
    return torch.from_numpy(p.detach().numpy().argmax(-1)) if p.device.type == 'cpu' else p.argmax(-1)


@lru_cache
def _share(step: int, steps: int) -> float:
    """Of the tokens, that is masked again after `step`. Computed in fp32, on the host."""
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
    """Ids of the text block, in at most `steps` forwards, greedy over the whole vocabulary (LLaDA, low confidence).

    Each step commits the most confident of the masked tokens: an equal share of the block, the first steps one more
    where it does not divide. With `threshold`, in 0..1, every token of at least this probability is committed, too.
    `stop`: end when everything up to an end of text is committed; the result then ends with it. Ids of the result can
    still be masks where the network chose the mask itself.
    `fixed`: every forward asks for the whole block, as a graph needs it, and not only for what is masked.
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
        # All that the host wants to know of this step, at once: where the first of each stands.
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
    """Ids that follow the prompt `ids` (1, T) of a causal network, token by token, greedy.

    The first forward computes the prompt, each later one what is new. The result ends with the first id of `stop`, or
    has `longest` tokens. vocabulary: size of it. allowed: which ids may come next, a slice or (n,) int64; None: any.
    An id that is the only one allowed takes no forward and has probability 1.
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
    """(The first id, how many). Raises ValueError where none is allowed."""
    first, count = (some.start, some.stop - some.start) if isinstance(some, slice) else (-1, len(some))
    if count < 1:
        raise ValueError('no token is allowed to follow: the grammar of the answer has no way on from here')
    return (first if isinstance(some, slice) else int(some[0])), count


def _cache(block: slice, cached: bool) -> KeyValues | None:
    return KeyValues(block.start) if cached else None


def run(steps: Steps[T]) -> T:
    """The result of a decoder, all forwards at once."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


class Job(Generic[T]):
    """A decoder under way. `step` does one forward; when it returns True, `result` is there."""

    def __init__(self, steps: Steps[T]):
        self._steps = steps
        self.result: T | None = None
        self.done = False
        self.longest = 0.0  # [s] longest step so far: what an urgent forward may have to wait for

    @torch.inference_mode()
    def step(self) -> bool:
        """One forward. True when the job is done; further calls do nothing."""
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
        """All that is left, and the result."""
        while not self.step():
            pass
        return self.result  # type: ignore[return-value]


@dataclass(frozen=True)
class Deviation:
    """How far a decode with the prefix cache is from the exact one."""

    equal: float  # share of equal tokens
    probability: float  # largest difference of a token's probability, among equal tokens


@torch.inference_mode()
def cache_deviation(decoder: Callable[[bool], Steps[Tokens]]) -> Deviation:
    """`decoder(cached)` starts the same decode with and without the prefix cache."""
    (exact, p), (approximate, q) = run(decoder(False)), run(decoder(True))
    n = min(len(exact), len(approximate))
    same = exact[:n] == approximate[:n]
    difference = (p[:n] - q[:n]).abs()[same]
    equal = float(same.sum()) / max(len(exact), len(approximate))
    return Deviation(equal, float(difference.max()) if len(difference) else 0.0)
