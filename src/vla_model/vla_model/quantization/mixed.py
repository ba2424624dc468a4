"""Which layer can be how small: each is rounded alone, and what that does to the chunk decides.

The divergences of single layers are added up, as if layers did not disturb each other. That only ranks them: the gate
measures the checkpoint that comes out.
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

LADDER = ('int4', 'int8')  # and after that: as it is
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
    """Mean Kullback-Leibler divergence of the action slots of the tuning prompts when one layer is rounded.

    One pass over the checkpoint. It keeps hidden states of every layer, scheme and prompt, not weights.
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
    """A block with one layer rounded, as long as the context lasts."""

    def __init__(self, block: Block, name: str, scheme: str, entered: dict[str, Seen], entry: Quantization):
        self.block, self.name, self.plain = block, name, block.get_submodule(name)
        self.scheme, self.entered, self.entry = scheme, entered, entry

    def __enter__(self) -> Block:
        round_block(self.block, self.entered, {self.name: self.scheme}, self.entry)
        return self.block

    def __exit__(self, *_: object) -> None:
        setattr(self.block, self.name, self.plain)


def choose(found: Divergences, sizes: dict[str, int], group: int, bits: float) -> dict[str, str]:
    """Layer -> scheme, with at most `bits` a weight on average; a layer that is not there stays as it is.

    Starts with 4 bits everywhere, then again and again gives more to the layer whose divergence falls most per bit.
    sizes: weights of each layer. Raises ValueError where even 4 bits are too many.
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
