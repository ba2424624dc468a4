"""Exports a run as a checkpoint folder that `vla_model.loading.load` reads."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file
from torch import Tensor

from vla_model.checkpoints import checkpoint
from vla_model.tokens.depth_tokenizer import load_depth_tokenizer
from vla_training.train import lora, structure
from vla_training.train.distributed import whole

if TYPE_CHECKING:
    from vla_training.train.trainer import Trainer


def plain(trainer: 'Trainer') -> Iterator[tuple[str, Tensor]]:
    """Yield the averaged weights as (name, tensor) of a plain network, fp32 on the CPU.

    All processes of a run must exhaust the iterator. Only the first process receives tensors.
    """
    groups: dict[str, dict[str, Tensor]] = {}
    for name, p in trainer.network.named_parameters():
        groups.setdefault(lora.plain_name(name).replace('.parametrizations.weight.0.map', '.weight'), {})[name] = p
    adapted = trainer.recipe.lora
    for name, group in groups.items():
        values = {n: whole(trainer.average.get(n, p)) for n, p in group.items()}
        if trainer.world.first:
            values = {n: value.float().cpu() for n, value in values.items()}
            folded = structure.fold(values, trainer.tokens.config.vocabulary) if not adapted.rank else {}
            yield name, lora.merge(values, adapted.scale) if adapted.rank else folded[name]


def export(trainer: 'Trainer', folder: Path) -> None:
    """Write the averaged weights as a checkpoint. All processes of a run must call it."""
    tensors = ((name, value.to(getattr(torch, trainer.recipe.dtype))) for name, value in plain(trainer))
    if trainer.world.first:
        tokens = trainer.tokens
        recipe = trainer.recipe

        def learned(mode: str) -> bool:
            return any(mode in stage.weights for stage in recipe.stages)

        config = replace(
            tokens.config, name=recipe.name, trained=True, network=trainer.network.config,
            inpaints=min(recipe.masking.prefix, recipe.masking.prefix_own) > 0,
            plan_tokens=recipe.masking.plan_tokens,
            plan_steps=min(tokens.config.plan_steps, recipe.masking.plan_tokens),
            world=learned('world'), steering=recipe.steering if learned('steer') or learned('line') else '',
            action_head=recipe.action_head,
        )  # fmt: skip
        image = load_file(tokens.folder / checkpoint.IMAGE_FILE)
        depth = load_depth_tokenizer(tokens.folder) if config.vocabulary.depth else None
        checkpoint.write(folder, config, tokens.text, tensors, image, recipe.shard_bytes, depth)
        record = {'recipe': recipe.to_dict(), 'step': trainer.step, 'seconds': trainer.seconds,
                  'frames': len(tokens), 'episodes': len(tokens.episode.unique())}  # fmt: skip
        (folder / 'training.json').write_text(json.dumps(record, indent=2) + '\n')
    else:
        for _ in tensors:
            pass
    trainer.world.wait()
