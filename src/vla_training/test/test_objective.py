from dataclasses import replace

import numpy as np
import pytest
import torch

from vla_model.network import Network
from vla_model.tokens.prompt import PromptBuilder
from vla_training.train.masking import Masking
from vla_training.train.objective import Objective
from vla_training.train.smoothing import smoothed_cross_entropy

CPU = torch.device('cpu')
CLEAN = Masking(state_noise=0, code_drop=0, code_flip=0, plan_tokens=32)


@pytest.fixture(scope='module')
def objective(tokens):
    return Objective(tokens, CLEAN, CPU)


@pytest.fixture
def network(config):
    torch.manual_seed(0)
    return Network(config.network)


@pytest.mark.parametrize('mode', ['action', 'text', 'image'])
def test_prompts_of_training_are_those_of_the_policy(tokens, objective, mode):
    v = tokens.config.vocabulary
    rows = torch.tensor([0, 13, 30, 60])
    length = {'action': 40, 'text': 32, 'image': 4}[mode]
    block = torch.randint(0, 60, (len(rows), length))
    ids, valid, where = objective.prompts[mode].fill(
        objective.instruction[rows], tokens.codes[rows].long() + v.image_offset, block,
        state=tokens.state[rows].long() + v.bins_offset,
    )  # fmt: skip
    builder = PromptBuilder.of(tokens.config, tokens.text, CPU)
    for i, row in enumerate(rows.tolist()):
        instruction = tokens.text.decode(tokens.texts[tokens.instruction[row]])
        template = {'action': builder.action, 'text': lambda t: builder.plan(t, 32), 'image': builder.image}[mode](
            instruction
        )
        state = tokens.state[row].long() + v.bins_offset if mode == 'action' else None
        expected = template.fill(state, tokens.codes[row].long() + v.image_offset, block[i])[0]
        assert torch.equal(ids[i][valid[i]], expected)
        assert torch.equal(ids[i, where], block[i])


def test_padding_changes_no_logits(tokens, objective, network):
    rows = torch.tensor([0, 13])
    v = tokens.config.vocabulary
    views, state = tokens.codes[rows].long() + v.image_offset, tokens.state[rows].long() + v.bins_offset
    block = torch.full((2, 40), v.mask)
    prompts = objective.prompts['action']
    ids, valid, where = prompts.fill(objective.instruction[rows], views, block, state=state)
    assert valid is not None and not valid.all()
    together = network(ids, where, slice(v.bins_offset, v.size), valid)
    for i in range(2):
        one, none, place = prompts.fill(
            objective.instruction[rows[i : i + 1]], views[i, None], block[:1], state=state[i, None]
        )
        assert none is None
        assert torch.allclose(network(one, place, slice(v.bins_offset, v.size))[0], together[i], atol=1e-5)


def test_grounding_points_are_always_masked_and_learned_where_they_are_known(tokens):
    objective = Objective(tokens, Masking(one_step=0.0, prefix=1.0, plan_tokens=32), CPU)
    rows = torch.arange(48)
    batch = objective.draw('action', rows, torch.Generator().manual_seed(0))
    block, v = batch.ids[:, batch.block], tokens.config.vocabulary
    assert (block[:, 32:] == v.mask).all() and not (block[:, :8] == v.mask).any()
    known = tokens.points[rows].flatten(1) >= 0
    assert known.any(1).all() and not known.all()
    assert torch.equal(batch.counted[:, 32:] > 0, known) and torch.equal(batch.weight, batch.counted)
    assert torch.equal(batch.label[:, 32:][known], tokens.points[rows].flatten(1)[known].long())
    assert float(batch.counted.sum()) == pytest.approx(1)


def test_masks_of_chunks(tokens):
    share = {'prefix': 0.0, 'one_step': 0.0}
    for change, check in (
        ({'one_step': 1.0}, lambda m: m.all()),
        ({'prefix': 1.0, 'one_step': 1.0}, lambda m: (m.sum(1) >= 16).all() and (m.sum(1) <= 24).all()),
        ({}, lambda m: m.any(1).all() and not m.all(1).all()),
    ):
        objective = Objective(tokens, Masking(**(share | change), plan_tokens=32), CPU)
        masked, given = objective.noise.mask_action(200, torch.Generator().manual_seed(0))
        assert check(masked) and torch.equal(given == 0, torch.full_like(given, not change.get('prefix'), dtype=bool))
        if change.get('prefix'):  # whole steps, from the first on
            steps = masked.unflatten(1, (4, 8))
            assert (steps.all(2) == steps.any(2)).all() and (steps[:, 1:, 0] >= steps[:, :-1, 0]).all()


def test_a_prefix_may_deviate_and_the_following_steps_lead_back(tokens):
    generator, masking = torch.Generator(), Masking(plan_tokens=32, prefix_slow=1.0)
    action = tokens.action[:40].long()
    given = torch.arange(40)[:, None] % 3  # of 4 steps
    objective = Objective(tokens, masking, CPU)
    slower = objective.prefixes.perturbed(action, given, generator.manual_seed(0))
    rest = objective.prefixes.rest
    assert torch.equal(slower[given[:, 0] == 0], action[given[:, 0] == 0])
    for row, k in enumerate(given[:, 0].tolist()):
        if not k:
            continue
        way, went = (a[row, k - 1, :-1] - rest[:-1] for a in (action, slower))
        assert (went.abs() <= way.abs() + 1).all()
        off = (slower - action)[row, :, :-1].float()
        assert torch.allclose(off[:k], off[k - 1] * torch.arange(1, k + 1)[:, None] / k, atol=1.01)
        assert torch.allclose(off[k:], off[k - 1] * 0.4 ** torch.arange(1, 5 - k)[:, None], atol=1.01)
    assert (slower != action).any() and torch.equal(slower[..., -1], action[..., -1])  # the gripper as it was
    noisy = Objective(tokens, Masking(plan_tokens=32, prefix_noise=0.1), CPU)
    off = (noisy.prefixes.perturbed(action, given, generator.manual_seed(0)) - action)[given[:, 0] == 2, 1, :-1].float()
    assert 0.03 < float(off.std()) / float(noisy.prefixes.spread[1, :-1].square().mean().sqrt()) < 0.3
    hand = Objective(tokens, Masking(plan_tokens=32, prefix_hand=1.0), CPU)
    opening = torch.arange(action[..., -1].numel()).view_as(action[..., -1]) % 60
    early = hand.prefixes.perturbed(
        torch.cat((action[..., :-1], opening[..., None]), -1), given, generator.manual_seed(0)
    )
    assert torch.equal(early[..., :-1], action[..., :-1])
    for row, k in enumerate(given[:, 0].tolist()):
        assert torch.equal(early[row, k:, -1], opening[row, k:])
        assert k == 0 or int(early[row, 0, -1]) in (int(opening[row, 0]), int(opening[row, -1]))
        assert len(early[row, :k, -1].unique()) <= 1
    assert (early[given[:, 0] == 2, 1, -1] == opening[given[:, 0] == 2, -1]).float().mean() > 0.2
    nowhere = torch.full_like(action, -1)
    assert torch.equal(noisy.prefixes.perturbed(nowhere, given, generator), nowhere)
    absolute = replace(
        tokens, config=replace(tokens.config, robot=replace(tokens.config.robot, action_space='ee_delta'))
    )
    with pytest.raises(ValueError, match=r'prefix_slow and prefix_noise are for actions of .* not of ee_delta'):
        Objective(absolute, masking, CPU)


def test_a_prefix_may_be_the_network_s_own(tokens, network):
    objective = Objective(tokens, Masking(one_step=1.0, prefix=1.0, prefix_own=1.0, plan_tokens=32), CPU)
    rows, v = torch.arange(48), tokens.config.vocabulary
    seen = []

    def says(ids, block, part, valid=None):
        assert (ids[:, block] == v.mask).all() and block.stop - block.start == 32  # the prefix is hidden
        seen.append(len(ids))
        return torch.nn.functional.one_hot(torch.full((len(ids), 32), 40), 64).float() * 100

    batch = objective.draw('action', rows, torch.Generator().manual_seed(0), says)
    alone = objective.draw('action', rows, torch.Generator().manual_seed(0))
    assert seen == [48] and torch.equal(batch.counted, alone.counted)  # the same is masked
    own, plain = (b.label[:, :32].view(48, 4, 8) for b in (batch, alone))
    given = (batch.counted[:, :32].view(48, 4, 8)[..., 0] == 0).sum(1)
    assert set(given.tolist()) == {1, 2}
    for row, k in enumerate(given.tolist()):
        assert (own[row, :k] == 40).all() and (batch.ids[row, batch.block][: 8 * k] == 40 + v.bins_offset).all()
        off = (own - plain)[row].float()
        expected = off[k - 1, :-1] * 0.4 ** torch.arange(1, 5 - k)[:, None]
        assert torch.allclose(off[k:, :-1], expected, atol=0.51)
        assert torch.equal(own[row, k:, -1], plain[row, k:, -1])  # the hand as it should be
    generator = torch.Generator().manual_seed(0)
    real = Objective(tokens, Masking(prefix=0.5, prefix_own=0.5, plan_tokens=32), CPU)
    assert len(real.draw('action', rows, generator, network)) == 48
    none = Objective(tokens, Masking(prefix=0.0, prefix_own=1.0, plan_tokens=32), CPU)
    assert len(none.draw('action', rows, generator, network)) == 48


def test_cosine_masks_cover_half_the_tokens_or_more(objective):
    masked = objective.noise.mask_cosine((2000, 16), torch.Generator().manual_seed(0))
    assert abs(masked.float().mean() - 2 / np.pi) < 0.02  # mean of cos(pi t / 2)
    assert masked.any(1).all()


def test_smoothed_cross_entropy_is_that_of_a_gaussian_label():
    logits, label = torch.randn(2, 3, 20), torch.tensor([[0, 5, 19], [10, 1, 18]])
    offset = torch.arange(20)[None, None] - label[..., None]
    target = torch.exp(-0.5 * (offset / 1.5) ** 2) * (offset.abs() <= 5)
    target = target / target.sum(-1, keepdim=True)
    expected = -(target * logits.log_softmax(-1)).sum(-1)
    assert torch.allclose(smoothed_cross_entropy(logits, label, 1.5), expected, atol=1e-5)


@pytest.mark.parametrize('mode', ['action', 'text', 'image'])
def test_every_mode_teaches_the_network(objective, network, mode):
    rows = torch.arange(0, 16)
    batch = objective.draw(mode, rows, torch.Generator().manual_seed(0))
    loss, right = objective.loss(network, batch)
    loss.backward()
    assert torch.isfinite(loss) and 0 <= right <= 1
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())


@pytest.mark.parametrize('mode', ['action', 'text', 'image'])
@pytest.mark.parametrize(('size', 'ranks'), [(3, 1), (0, 2), (2, 3)])
def test_the_parts_of_a_batch_add_up_to_it(objective, network, mode, size, ranks):
    batch = objective.draw(mode, torch.arange(10), torch.Generator().manual_seed(0))
    whole = torch.stack(objective.loss(network, batch))
    parts = [list(batch.parts(size, rank, ranks)) for rank in range(ranks)]
    assert len({tuple(len(part) for part in own) for own in parts}) == 1  # every process makes as many forwards
    found = sum(torch.stack(objective.loss(network, part)) for own in parts for part in own)
    assert torch.allclose(found, whole, atol=1e-5)


def test_frames_without_a_plan_are_left_out(objective):
    generator = torch.Generator()
    assert objective.draw('text', torch.tensor([0, 3]), generator) is None
    assert len(objective.draw('text', torch.tensor([0, 1, 2, 3]), generator)) == 2


def test_a_plan_that_does_not_fit_is_refused(tokens):
    with pytest.raises(ValueError, match='plan_tokens is 4'):
        Objective(tokens, Masking(plan_tokens=4), CPU)
