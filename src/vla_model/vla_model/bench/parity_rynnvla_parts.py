"""Layers of RynnVLA-002, and its losses and gradients on a batch, as its reference computes them.

The reference lets its action head attend to the padding behind the queries. The numbers of a batch are made that way
here, too. Those of each sample alone are made with our head, which masks padding.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from vla_model.families.rynnvla import losses, tokens
from vla_model.families.rynnvla.action_head import ActionHead
from vla_model.families.rynnvla.mask import chunk_mask
from vla_model.families.rynnvla.tokens import ACTION
from vla_model.network import Network, rotate


def layers(network: Network, ids: Tensor, at: Tensor) -> dict[str, Tensor]:
    """Queries and keys of the first layer, and the states behind every layer, of ids (1, T) at positions (n,)."""
    transformer: Any = network.model['transformer']
    length = ids.shape[1]
    rope = network._rope_for(length, ids.device)
    mask, h = chunk_mask(ids[0].numpy())[None, None], network.embed(ids)
    blocks, states, found = transformer.blocks, [h], {}
    first = blocks[0]
    n = first.attn_norm(h)[:, at]
    for letter, project, norm, heads in (
        ('q', first.q_proj, first.q_norm, first.n_heads), ('k', first.k_proj, first.k_norm, first.n_kv_heads),
    ):  # fmt: skip
        normed = norm(project(n).unflatten(-1, (heads, first.head_dim)).transpose(1, 2))
        found[f'layer0_{letter}_normed'] = normed[0].transpose(0, 1)
        found[f'layer0_{letter}_rotated'] = rotate(normed, rope[0][at], rope[1][at])[0].transpose(0, 1)
    for block in blocks:
        h = block(h, rope, slice(None), mask)
        states.append(h)
    states[-1] = transformer.ln_f(h)
    found['hidden_per_layer'] = torch.stack([s[0, at] for s in states])
    return found


def batch(network: Network, head: ActionHead, ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Losses, chunks and gradients of padded samples, ids and labels (B, T), by the end of their tensors' names."""
    mask = torch.stack([chunk_mask(row.numpy()) for row in ids])[:, None]
    length = ids.shape[1]
    h = network.hidden(network.embed(ids), slice(0, length), length, mask)
    has = losses.has_chunk(ids)
    prompts = [int((row == tokens.ACTION_START).nonzero()[0, 0]) for row in ids[has]]
    longest = max(prompts)
    found: dict[str, Tensor] = {}
    predicted = [_padded_head(head, h[has][i, :n], longest - n) for i, n in enumerate(prompts)]
    alone = [head(h[has][i : i + 1, :n])[0] for i, n in enumerate(prompts)]
    wanted = [targets(row, head.dims) for row in ids[has]]
    found['pred_actions'], found['target_actions'] = torch.cat(predicted), torch.cat(wanted)
    learned = labels[:, 1:] != losses.IGNORED
    logits = network.head(h[:, :-1], slice(0, tokens.VOCABULARY))
    ce, z = losses.token_losses(logits[learned], labels[:, 1:][learned])
    l1 = (found['pred_actions'] - found['target_actions']).abs().mean()
    total = losses.total_loss(ce, z, l1)
    found['values'] = torch.stack((ce, z, l1, total)).detach()
    rows, action = [], iter(zip(alone, wanted, strict=True))
    for i in range(len(ids)):
        ce, z = losses.token_losses(logits[i][learned[i]], labels[i, 1:][learned[i]])
        ours, theirs = next(action) if has[i] else (torch.zeros(1), torch.zeros(1))
        rows.append(torch.stack((ce, z, (ours - theirs).abs().mean())))
    found['per_sample'] = torch.stack(rows).detach()
    total.backward()
    parameters = [*network.parameters(), *head.parameters()]
    first: Any = network.model['transformer'].blocks[0]  # type: ignore[union-attr,index]
    last: Any = head.output_projection['model']
    found['grad_q_proj_0'] = first.q_proj.weight.grad
    found['grad_head_fc2'] = last.fc2.weight.grad
    found['grad_head_queries'] = head.action_token_embeddings.weight.grad.flatten()[:4096]  # type: ignore[union-attr]
    norms = [p.grad.double().norm() for p in parameters if p.grad is not None]
    found['grad_norm'] = torch.stack(norms).norm()[None]
    return {name: value.detach() for name, value in found.items()}


def targets(ids: Tensor, dims: int) -> Tensor:
    """(horizon, dims) bin centres of the action blocks in ids (T,)."""
    starts = (ids == tokens.ACTION_START).nonzero()[:, 0].tolist()
    blocks = np.stack([ids[s + 1 : s + 1 + dims].numpy() for s in starts])
    return torch.from_numpy(tokens.bin_values(blocks, ACTION)).float()


def _padded_head(head: ActionHead, context: Tensor, padding: int) -> Tensor:
    """The head's chunk where `padding` rows of zeros stand behind the queries and are attended to."""
    count = head.horizon * head.dims
    table = head.action_token_embeddings.weight.view(1, count, -1)
    zeros = context.new_zeros(1, padding, context.shape[-1])
    h = head.transformer_encoder(head.hidden_projection(torch.cat((context[None], table, zeros), 1)))
    queries = h[:, len(context) : len(context) + count]
    return head.output_projection['model'](queries.unflatten(1, (head.horizon, -1)).flatten(2))[0]
