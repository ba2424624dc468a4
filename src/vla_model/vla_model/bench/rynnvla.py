"""Times a chunk of RynnVLA-002 against a plain restatement of its reference's way, with the same random weights.

The reference encodes every picture of a prompt at every act, builds a mask of all pairs of positions, fills a key/value
cache, and computes logits of all positions over the whole vocabulary, also where the action head alone decides. A
discrete chunk is decoded token by token. The shape is that of 7B; `layers` of its blocks run, as all need 14 GB.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vla_model import decode
from vla_model.config import NetworkConfig
from vla_model.engines.image import DTYPES
from vla_model.engines.processor import cpu_name
from vla_model.engines.subject import set_threads
from vla_model.families.rynnvla import decode as answers
from vla_model.families.rynnvla import tokens
from vla_model.families.rynnvla.action_head import ActionHead
from vla_model.families.rynnvla.mask import chunk_mask
from vla_model.families.rynnvla.tokens import ACTION, STATE
from vla_model.families.rynnvla.views import Views
from vla_model.families.rynnvla.vqgan import Vqgan, VqganConfig
from vla_model.network import KeyValues, Network

SHAPE = NetworkConfig(4096, 32, 32, 32, 11008, 1e4, 1e-5, tokens.VOCABULARY, causal=True, qk_norm='layer')
HORIZON, DIMS, STATES, TEXT = 5, 7, 8, 15  # LIBERO; ids of an instruction
SIDE = 256  # [px]


@dataclass
class Parts:
    """A random model of `layers` blocks, and the pictures of a scene: front and wrist, the newest last."""

    network: Network
    head: ActionHead
    vqgan: Vqgan
    pictures: list[np.ndarray]

    @classmethod
    def make(cls, shape: NetworkConfig, vqgan: VqganConfig, dtype: torch.dtype, side: int = SIDE) -> 'Parts':
        """Return random parts in `dtype`; head and image tokenizer are in float32. side: [px] of the pictures."""
        torch.manual_seed(0)
        with torch.device('meta'):
            parts = Network(shape), ActionHead(shape.d_model, HORIZON, DIMS), Vqgan(vqgan)
        for part, precision in zip(parts, (dtype, torch.float32, torch.float32), strict=True):
            part.to(precision).to_empty(device='cpu').eval()
            for name, p in part.named_parameters():
                _ = p.data.fill_(1.0) if p.ndim == 1 and name.endswith('weight') else p.data.normal_(std=0.02)
        rng = np.random.default_rng(0)
        return cls(*parts, [rng.integers(0, 256, (side, side, 3), np.uint8) for _ in range(4)])

    def prompt(self, blocks: list[np.ndarray]) -> Tensor:
        """Return ids (1, T) of a prompt with these blocks of images."""
        state = tokens.block_ids(np.linspace(-1, 1, STATES), STATE)
        ids = [np.array([tokens.BOS]), np.arange(TEXT) + 17000, state, *blocks, np.array([tokens.TURN_END])]
        return torch.from_numpy(np.concatenate(ids).astype(np.int64))[None]


# ---- ours


def continuous(p: Parts, views: Views) -> Tensor:
    """Return a chunk (HORIZON, DIMS) by the action head. views: kept from one act to the next."""
    ids = p.prompt([views.block(picture) for picture in p.pictures])
    hidden = p.network.hidden(p.network.embed(ids), slice(0, ids.shape[1]), ids.shape[1])
    return p.head(hidden.float())[0]


def discrete(p: Parts, views: Views) -> Tensor:
    """Return the ids of a discrete chunk."""
    ids = p.prompt([views.block(picture) for picture in p.pictures])
    return decode.run(answers.chunk(p.network, ids, HORIZON, DIMS))[0]


# ---- the reference's way


def reference_forward(network: Network, ids: Tensor, everything: Tensor, cache: KeyValues) -> tuple[Tensor, Tensor]:
    """Return hidden states and logits of all of `ids` (1, n), the last of `everything` (1, T), and fill the cache."""
    t: Any = network.model['transformer']
    total, n = everything.shape[1], ids.shape[1]
    allowed = chunk_mask(everything[0].numpy())[total - n :]
    h = t.wte(ids)
    mask = torch.zeros(n, total, dtype=h.dtype).masked_fill_(~allowed, torch.finfo(h.dtype).min)[None, None]
    cos, sin = network._rope_for(total, ids.device)
    cache.positions = slice(total - n, total)
    for i, block in enumerate(t.blocks):
        h = block(h, (cos[total - n :], sin[total - n :]), slice(None), mask, cache, i, total)
    h = t.ln_f(h)
    return h, F.linear(h, t.ff_out.weight).float()


def reference_prefill(p: Parts, longest: int) -> tuple[Tensor, Tensor, Tensor, KeyValues]:
    """Return ids with the start of an action, their hidden states and logits, and the cache."""
    views = Views(p.vqgan)  # nothing is kept
    ids = p.prompt([views.block(picture) for picture in p.pictures])
    ids = torch.cat((ids, torch.tensor([[ACTION.start]])), 1)
    cache = KeyValues(0, capacity=ids.shape[1] + longest)
    return ids, *reference_forward(p.network, ids, ids, cache), cache


def reference_continuous(p: Parts, head: ActionHead) -> Tensor:
    """Return a chunk by the action head in the network's precision."""
    _, hidden, logits, _ = reference_prefill(p, 1)
    logits[0, -1].argmax()  # the one token that is generated
    return head(hidden[:, :-1])[0]


def reference_discrete(p: Parts) -> Tensor:
    """Return the ids of a discrete chunk, token by token. The grammar is given, so that the answers are comparable."""
    size, count = DIMS + 2, HORIZON * (DIMS + 2)
    ids, _, logits, cache = reference_prefill(p, count + 1)
    for i in range(1, count + 1):
        at = i % size
        best = int(logits[0, -1, ACTION.bins].argmax()) + ACTION.bins.start
        last = tokens.TURN_END if i == count else ACTION.start
        token = last if at == 0 else ACTION.end if at == size - 1 else best
        ids = torch.cat((ids, torch.tensor([[token]])), 1)
        if i < count:
            _, logits = reference_forward(p.network, ids[:, -1:], ids, cache)
    return ids[0, -count - 1 :]


# ---- work


def counted(run: Callable[[], Any]) -> int:
    """Return the FLOP of matmuls and convolutions of a call on the meta device; a multiplication with addition is 2."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one operator that is not counted
    try:
        # Fused attention is not counted on every device; its parts are.
        with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            run()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return counter.get_total_flops()


def work(shape: NetworkConfig = SHAPE, vqgan: VqganConfig | None = None, pictures: int = 4) -> dict[str, float]:
    """Return the FLOP of the parts of a chunk, of a prompt with so many pictures of 256 px."""
    length = 2 + TEXT + STATES + 2 + pictures * tokens.image_length(SIDE // tokens.PATCH, SIDE // tokens.PATCH)
    if shape.n_layers > 2:  # all blocks but the last are alike
        one, two = (work(replace(shape, n_layers=n), vqgan, pictures) for n in (1, 2))
        return two | {'backbone': two['backbone'] + (shape.n_layers - 2) * (two['backbone'] - one['backbone'])}
    with torch.device('meta'):
        network, tokenizer = Network(shape), Vqgan(vqgan or VqganConfig())
        head = ActionHead(shape.d_model, HORIZON, DIMS).eval()
        ids, pixels = torch.zeros(1, length, dtype=torch.long), torch.empty(1, 3, SIDE, SIDE)
        h = torch.empty(1, length, shape.d_model)
        return {
            'tokens': length,
            'picture': counted(lambda: tokenizer.latents(pixels)) + 2 * vqgan_search(tokenizer),
            'backbone': counted(lambda: network.hidden(network.embed(ids), slice(0, length), length)),
            'head': counted(lambda: head(h)),
            'lm_head': counted(lambda: network.head(h, slice(0, shape.vocab_size))),
        }


def vqgan_search(tokenizer: Vqgan) -> int:
    """Return the multiplications of the search for the nearest code of each position."""
    return (SIDE // tokens.PATCH) ** 2 * tokenizer.config.code_width * tokenizer.config.codes


def totals(w: dict[str, float]) -> dict[str, float]:
    """Return the FLOP of a continuous chunk: ours, two of four pictures new, and the reference's."""
    return {
        'ours': w['backbone'] + w['head'] + 2 * w['picture'],
        'reference': w['backbone'] + w['head'] + 4 * w['picture'] + w['lm_head'],
    }


# ---- the benchmark


@torch.inference_mode()
def bench_rynnvla(
    layers: int = 2, dtype: str = 'bfloat16', rounds: int = 3, threads: int = 0, parts: Parts | None = None
) -> dict[str, Any]:
    """Time both chunks in both ways, in turns; return medians [s of processor time, all threads], FLOP and machine.

    layers: blocks that run, of 32. parts: another model, for tests. Raises ValueError for a wrong option.
    """
    if not 1 <= layers <= SHAPE.n_layers or dtype not in DTYPES or rounds < 1:
        raise ValueError(f'layers must be 1 to {SHAPE.n_layers}, dtype one of {list(DTYPES)}, rounds 1 or more')
    set_threads(threads)
    p = parts or Parts.make(replace(SHAPE, n_layers=layers), VqganConfig(), DTYPES[dtype])
    theirs, views = _copy(p.head, next(p.network.parameters()).dtype), Views(p.vqgan)
    rng = np.random.default_rng(1)
    runs: dict[str, Callable[[], Any]] = {
        'continuous': lambda: continuous(p, views),
        'continuous, reference': lambda: reference_continuous(p, theirs),
        'discrete': lambda: discrete(p, views),
        'discrete, reference': lambda: reference_discrete(p),
    }
    for picture in p.pictures:
        views.block(picture)
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            # Two new pictures per act; the ones before are in the history.
            p.pictures = [*p.pictures[2:], *(rng.integers(0, 256, x.shape, np.uint8) for x in p.pictures[:2])]
            if 'reference' not in name:  # those before have been seen by the act before
                for picture in p.pictures[:2]:
                    views.block(picture)
            begun = time.process_time()
            run()
            samples[name].append(time.process_time() - begun)
    return {
        'machine': f'{cpu_name()}, {torch.get_num_threads()} threads, {dtype}',
        'date': time.strftime('%Y-%m-%d'),
        'layers': len(p.network.model['transformer'].blocks),  # type: ignore[union-attr, arg-type]
        'seconds': {name: median(s) for name, s in samples.items()},
        'work': work(),
        'truncated': work(replace(SHAPE, n_layers=layers)),
    }


def _copy(head: ActionHead, dtype: torch.dtype) -> ActionHead:
    made = ActionHead(head.hidden_projection.in_features, head.horizon, head.dims).to(dtype).eval()
    made.load_state_dict({name: t.to(dtype) for name, t in head.state_dict().items()})
    return made


def report(result: dict[str, Any]) -> str:
    """Return the result of bench_rynnvla as text."""
    w, cut, seconds = result['work'], result['truncated'], result['seconds']
    full, short = totals(w), totals(cut)
    lines = [
        f'{result["machine"]}, {result["date"]}',
        f'RynnVLA-002 7B, {w["tokens"]} tokens, four pictures, of which two are new',
        '',
        'FLOP of a continuous chunk [TFLOP]: '
        + ', '.join(f'{name} {w[name] / 1e12:.3f}' for name in ('backbone', 'head', 'picture', 'lm_head')),
        f'all 32 layers: {full["ours"] / 1e12:.2f}, the reference {full["reference"] / 1e12:.2f} '
        f'({full["reference"] / full["ours"]:.2f} times)',
        f'{result["layers"]} layers: {short["ours"] / 1e12:.2f}, the reference {short["reference"] / 1e12:.2f} '
        f'({short["reference"] / short["ours"]:.2f} times)',
        '',
        f'measured with {result["layers"]} layers [s of processor time, all threads]',
        f'  {"":12} {"ours":>8} {"reference":>10} {"ratio":>6}',
    ]
    for name in ('continuous', 'discrete'):
        ours, theirs = seconds[name], seconds[f'{name}, reference']
        lines.append(f'  {name:12} {ours:8.2f} {theirs:10.2f} {theirs / ours:6.2f}')
    return '\n'.join(lines)
