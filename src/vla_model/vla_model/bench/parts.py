"""Parts of the benchmarks: shapes, their number of operations, and the baseline that computes like the reference."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vla_model.checkpoints import nano
from vla_model.checkpoints.shipped import RANDOM
from vla_model.config import ImageTokenizerConfig, NetworkConfig
from vla_model.engines import image as image_engine
from vla_model.engines.subject import trial_subject
from vla_model.engines.trial import ENGINE, IMAGES, Candidate, verdicts
from vla_model.image_tokenizer import ImageTokenizer
from vla_model.network import Network
from vla_model.tokens.prompt import PromptLayout, Template
from vla_model.tokens.text_tokenizer import NANO_FILE, TextTokenizer
from vla_model.tokens.vocabulary import Vocabulary

SIZES = ('tiny', 'nano', 'nano-7dim', 'mid', '8b')


@dataclass(frozen=True)
class Size:
    """Shapes of a network, its image tokenizer and its prompts."""

    network: NetworkConfig
    image_tokenizer: ImageTokenizerConfig
    vocabulary: Vocabulary
    dims: tuple[int, int]  # of state and action
    horizon: int
    max_prompt_tokens: int  # the padded prompt follows from it

    @property
    def layout(self) -> PromptLayout:
        """The layout of its prompts: two views, no grounding points."""
        return PromptLayout(2, self.image_tokenizer.tokens, *self.dims, self.horizon, self.max_prompt_tokens)


def size_of(name: str) -> Size:
    """Return the shapes of a size of SIZES. tiny is for tests, nano has its own layout.

    The others have the layout of 7 dimensions and two views, padded to 1024. Raises ValueError for an unknown size.
    """
    if name not in SIZES:
        raise ValueError(f'size must be one of {list(SIZES)}, got {name!r}')
    config = nano.config(TextTokenizer.load(NANO_FILE).size)
    robot, small = config.robot, config.network
    if name == 'nano':
        dims = (len(robot.state_low), len(robot.action_low))
        return Size(small, config.image_tokenizer, config.vocabulary, dims, robot.horizon, robot.max_prompt_tokens)
    image = replace(config.image_tokenizer, resolution=256, **_levels(16, (1, 2, 2, 4, 8), (0, 1, 1, 1, 1)))
    if name == 'nano-7dim':
        return Size(small, image, config.vocabulary, (8, 7), 8, 910)
    if name == 'tiny':
        network = replace(small, d_model=32, n_layers=2, n_heads=2, n_kv_heads=2, mlp_hidden_size=48)
        tiny_image = replace(image, resolution=64, **_levels(8, (1, 1, 1, 1, 1), (0, 0, 0, 0, 0)))
        return Size(network, tiny_image, config.vocabulary, (8, 7), 8, 160)
    if name == 'mid':  # the proportions of 8b: 8 % of the weights of the blocks are in the head
        network = NetworkConfig(1024, 22, 16, 16, 3072, 10000.0, 1e-5, 24576)
        vocabulary = replace(config.vocabulary, size=network.vocab_size)
        image = replace(image, **_levels(32, (1, 2, 2, 4, 4), (1, 1, 1, 1, 1)))
        return Size(network, image, vocabulary, (8, 7), 8, 910)
    network = NetworkConfig(4096, 32, 32, 32, 12288, 10000.0, 1e-5, 136704)
    image = ImageTokenizerConfig(256, 128, 32, 13, (1, 2, 2, 4, 4), (4, 3, 4, 3, 4), (1, 1, 2, 2, 4), (4, 4, 3, 4, 3))
    return Size(network, image, Vocabulary.released(), (8, 7), 8, 910)


def _levels(channels: int, mult: tuple[int, ...], blocks: tuple[int, ...]) -> dict[str, Any]:
    both = {'encoder_mult': mult, 'decoder_mult': mult, 'encoder_blocks': blocks, 'decoder_blocks': blocks}
    return {'channels': channels, **both}


# ---- work


def forward_flops(c: NetworkConfig, tokens: int, rows: int, vocabulary: int) -> int:
    """Return the FLOP of matmuls in a forward of `tokens` positions, with `vocabulary` logits at `rows` of them.

    A multiplication with its addition counts 2. The last layer computes keys and values of all positions, and the rest
    for the rows only.
    """
    size, kv = c.n_heads * c.head_size, c.n_kv_heads * c.head_size
    keys = 2 * 2 * tokens * c.d_model * kv

    def rest(n: int) -> int:
        return 2 * n * c.d_model * (2 * size + 3 * c.mlp_hidden_size) + 4 * n * tokens * size

    layers = c.n_layers * keys + (c.n_layers - 1) * rest(tokens) + rest(rows)
    return layers + 2 * rows * c.d_model * vocabulary


def encoder_flops(config: ImageTokenizerConfig) -> int:
    """Return the FLOP of convolutions and attention for one image."""
    with torch.device('meta'):
        encoder, pixels = ImageTokenizer(config).encoder, torch.empty(1, 3, config.resolution, config.resolution)
    # Fused attention is not counted on every device; its parts are.
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        encoder(pixels)
    return counter.get_total_flops()


def matmul_peak(device: torch.device, dtype: torch.dtype, side: int = 0) -> float:
    """Return the peak rate [FLOP/s] of a matmul of square matrices, the best of ten runs.

    It is that of torch or, on a CPU, of OpenVINO if it is faster. side: 0 for 1024 on a CPU, and 8192 on a GPU, which
    smaller matrices do not fill.
    """
    side = side or (8192 if device.type == 'cuda' else 1024)
    a, b = (torch.rand(side, side, device=device).to(dtype) for _ in range(2))
    runs: list[Callable[[], Any]] = [lambda: a @ b]
    try:
        runs += [_openvino_matmul(side, dtype)] if device.type == 'cpu' else []
    except ImportError:
        pass
    best = math.inf
    for run in runs:
        run()
        for _ in range(10):
            best = min(best, timed(run, device))
    return 2 * side**3 / best


def _openvino_matmul(side: int, dtype: torch.dtype) -> Callable[[], Any]:
    import openvino as ov
    from openvino import opset13 as op

    rng = np.random.default_rng(0)
    weight, value = (rng.random((side, side), np.float32) for _ in range(2))
    x = op.parameter([side, side], np.float32)
    model = ov.Model([op.matmul(x, op.constant(weight), False, True)], [x])
    hint = 'bf16' if dtype == torch.bfloat16 else 'f32'
    options = {'INFERENCE_PRECISION_HINT': hint, 'INFERENCE_NUM_THREADS': torch.get_num_threads()}
    request = ov.Core().compile_model(model, 'CPU', options).create_infer_request()
    return lambda: request.infer({0: value}, share_inputs=True, share_outputs=True)


# ---- the baseline


def padded_forward(network: Network, ids: Tensor, valid: Tensor) -> Tensor:
    """Return logits (B, T, all) of padded ids (B, T), computed without the savings of `Network.forward`."""
    t = network.model['transformer']
    h = t.wte(ids)  # type: ignore[operator]
    bias = padded_mask(valid, h.dtype)
    rope = network._rope_for(ids.shape[1], ids.device)
    for block in t.blocks:  # type: ignore[union-attr]
        h = block(h, rope, slice(None), bias)
    return F.linear(t.ln_f(h), t.ff_out.weight)  # type: ignore[operator, union-attr, arg-type]


def baseline_act(network: Network, v: Vocabulary, template: Template, state: Tensor, views: Tensor) -> Tensor:
    """Return the bins (n,) of the action block."""
    ids = template.ids.tolist()
    ids[template.state] = state.tolist()
    for slot, view in zip(template.views, views, strict=True):
        ids[slot] = view.tolist()
    filled = torch.tensor(ids, device=template.ids.device)[None]
    logits = padded_forward(network, *template.padded(filled))
    block = slice(template.left + template.block.start, template.left + template.block.stop)
    return logits[0, block, v.bins_offset :].float().softmax(-1).argmax(-1)


def padded_mask(valid: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the mask (B, 1, T, T) to add to scores: 0 where query and key are valid (B, T), else the lowest number."""
    allowed = valid[:, None, :, None] & valid[:, None, None, :]
    return torch.zeros(allowed.shape, dtype=dtype, device=valid.device).masked_fill_(~allowed, torch.finfo(dtype).min)


def timed(run: Callable[[], Any], device: torch.device) -> float:
    """Return the time of a call [s], including the wait for the device."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def dying_engines(
    engines: Sequence[str], image_engines: Sequence[str], device: str, precision: str
) -> dict[Candidate, str]:
    """Return candidate -> reason for engines that end a process on this machine, tried on random-nano in a child."""
    kind = torch.device(device).type
    asked = [Candidate(ENGINE, name) for name in engines if name not in ('eager', 'tensorrt')]
    paths = [(name, d) for name in image_engines for d in image_engine.SUPPORTED[name].get(kind, ())]
    asked += [Candidate(IMAGES, *path) for path in paths if path != ('eager', 'float32')]
    if not asked:
        return {}
    found = verdicts(trial_subject(RANDOM, device, precision), asked)
    return {c: f'{c} {v.why} when it was tried on this machine' for c, v in found.items() if v.native}
