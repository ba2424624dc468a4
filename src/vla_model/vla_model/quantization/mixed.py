"""Chooses the scheme of each layer by the divergence of the chunk when this layer alone is rounded.

The divergences of layers are added, as if they were independent. The sum only ranks the layers: the gate measures the
resulting checkpoint.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from vla_model.config import Quantization
from vla_model.families.folder import open_folder
from vla_model.network import Block
from vla_model.quantization.gate import Calibration
from vla_model.quantization.quantize import BLOCKS, HEAD, LINEARS, NORM, Stream, group_of, read_block, round_block
from vla_model.quantization.smooth import Seen, watch

LADDER = ('int4', 'int8')  # in order of size; the next step is the original precision
KEPT_BITS = 16.0  # of a weight that stays as it is

Divergences = dict[tuple[str, str], float]  # (layer, scheme) -> [nats]


@torch.inference_mode()
def sensitivity(
    source: Path,
    calibration: Calibration,
    activations: str = 'tensor',
    image_tokenizer: Path | None = None,
    device: str = 'cpu',
) -> Divergences:
    """Return the mean Kullback-Leibler divergence of the action slots [nats] when one layer is rounded.

    It reads the checkpoint once, and keeps the hidden states of every layer, scheme and tuning prompt.
    """
    found = open_folder(source, image_tokenizer)
    config, v = found.config.network, found.config.vocabulary
    entry = Quantization('mixed', group_of(config), activations, {'': 'int4'}, '', {})
    stream = Stream(found, calibration, entry, torch.device(device))
    table = stream.read(['model.transformer.wte.weight'])['model.transformer.wte.weight']
    exact = [table[c.ids].float() for c in calibration.tuning]
    del table
    variants: dict[tuple[str, str], list[Tensor]] = {}
    for i in range(config.n_layers):
        block, _ = read_block(stream, i)
        variants = {key: [stream.run(block, h) for h in hidden] for key, hidden in variants.items()}
        after, entered = watch(block, exact, stream.rope)
        for name in LINEARS:
            for scheme in LADDER:
                with _rounded(block, name, scheme, entered, entry) as changed:
                    variants[f'{BLOCKS}.{i}.{name}', scheme] = [stream.run(changed, h) for h in exact]
        exact = after
    read = stream.read([f'{NORM}.weight', f'{HEAD}.weight'])
    head = read[f'{HEAD}.weight'][v.bins_offset :].float().to(stream.device)
    weight = read[f'{NORM}.weight'].float().to(stream.device)

    def logs(hidden: list[Tensor]) -> Tensor:
        ended = zip(hidden, calibration.tuning, strict=True)
        normed = [nn.functional.rms_norm(h[0, c.block], weight.shape, weight, config.rms_norm_eps) for h, c in ended]
        return (torch.cat(normed) @ head.t()).log_softmax(-1)

    reference = logs(exact)
    return {
        key: float((reference.exp() * (reference - logs(hidden))).sum(-1).mean()) for key, hidden in variants.items()
    }


class _rounded:
    """Context in which one layer of a block is rounded."""

    def __init__(self, block: Block, name: str, scheme: str, entered: dict[str, Seen], entry: Quantization):
        self.block, self.name, self.plain = block, name, block.get_submodule(name)
        self.scheme, self.entered, self.entry = scheme, entered, entry

    def __enter__(self) -> Block:
        round_block(self.block, self.entered, {self.name: self.scheme}, self.entry)
        return self.block

    def __exit__(self, *_: object) -> None:
        setattr(self.block, self.name, self.plain)


def choose(found: Divergences, sizes: dict[str, int], group: int, bits: float) -> dict[str, str]:
    """Return layer -> scheme, with at most `bits` per weight on average; layers without a scheme are unchanged.

    All layers start at 4 bits. Then the layer whose divergence falls most per bit gets more bits, repeatedly. sizes:
    number of weights of each layer. Raises ValueError where 4 bits exceed the budget.
    """
    cost = {'int4': 4 + 16 / group, 'int8': 8.0, 'keep': KEPT_BITS}
    budget = bits * sum(sizes.values())
    if budget < cost['int4'] * sum(sizes.values()):
        raise ValueError(f'bits must be at least {cost["int4"]:.3g}, what int4 needs with its scales, got {bits:g}')
    chosen = dict.fromkeys(sizes, 'int4')
    spent = cost['int4'] * sum(sizes.values())
    divergence = {layer: [found[layer, 'int4'], found[layer, 'int8'], 0.0] for layer in sizes}
    rungs = [*LADDER, 'keep']
    while True:
        best, gain = None, 0.0
        for layer, scheme in chosen.items():
            here = rungs.index(scheme)
            for there in range(here + 1, len(rungs)):
                extra = (cost[rungs[there]] - cost[scheme]) * sizes[layer]
                worth = (divergence[layer][here] - divergence[layer][there]) / extra
                if spent + extra <= budget and worth > gain:
                    best, gain = (layer, rungs[there], extra), worth
        if best is None:
            return {layer: scheme for layer, scheme in chosen.items() if scheme != 'keep'}
        chosen[best[0]] = best[1]
        spent += best[2]
