import pytest
import torch

from vla_model import decode
from vla_model.checkpoints.nano import init_weights
from vla_model.config import NetworkConfig
from vla_model.network import KeyValues, Network
from vla_model.tokens.vocabulary import Vocabulary

V = Vocabulary.small(40, codes=32, bins=64)
BLOCK = slice(20, 44)


@pytest.fixture(scope='module')
def network():
    torch.set_num_threads(1)
    network = Network(NetworkConfig(64, 3, 4, 2, 128, 10000.0, 1e-5, V.size))
    init_weights(network, 0)
    network.model['transformer'].wte.weight.data *= 20  # or the context would hardly count
    return network.eval()


class Counting:
    """The network, and what it was asked."""

    def __init__(self, network):
        self.network, self.asked = network, []

    def __call__(self, ids, rows, vocabulary, valid=None, cache=None):
        self.asked.append((ids.clone(), rows, cache))
        return self.network(ids, rows, vocabulary, valid, cache)


@pytest.fixture
def ids():
    """A prompt with a block of 24 masks and one token behind it."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 40, (1, BLOCK.stop + 1), generator=generator)
    ids[0, BLOCK] = V.mask
    return ids


@pytest.fixture(autouse=True)
def inference():
    with torch.inference_mode():
        yield


def test_one_step_is_the_most_probable_bin_of_each_slot(network, ids):
    tokens, probability = decode.run(decode.action(network, V, ids, BLOCK))
    p = network(ids, BLOCK, slice(V.bins_offset, V.size))[0].softmax(-1)
    assert torch.equal(tokens, p.argmax(-1))
    assert torch.equal(probability, p.max(-1).values)
    assert (ids[0, BLOCK] == V.mask).all(), 'the prompt must not change'


@pytest.mark.parametrize('steps', [1, 3])
def test_the_median_is_in_the_middle_of_what_is_probable(network, ids, steps):
    median = torch.arange(BLOCK.stop - BLOCK.start) % 2 == 0
    given = 4
    ids[0, BLOCK][:given] = V.bins_offset + 5
    plain, _ = decode.run(decode.action(network, V, ids, BLOCK, given, steps))
    tokens, probability = decode.run(decode.action(network, V, ids, BLOCK, given, steps, median=median))
    assert torch.equal(tokens[~median], plain[~median]) and torch.equal(tokens[:given], plain[:given])
    assert (tokens != plain).any() and ((probability > 0) & (probability <= 1)).all()
    if steps == 1:
        p = network(ids, BLOCK, slice(V.bins_offset, V.size))[0].softmax(-1)
        for i in range(given, len(tokens), 2):
            below = float(p[i, : tokens[i]].sum())
            assert below <= 0.5 + 1e-5 and below + float(p[i, tokens[i]]) >= 0.5 - 1e-5


def test_several_steps_keep_the_confident_tokens_and_see_them(network, ids):
    counting = Counting(network)
    tokens, probability = decode.run(decode.action(counting, V, ids, BLOCK, steps=6))
    masked = [int((asked[0, BLOCK] == V.mask).sum()) for asked, _, _ in counting.asked]
    assert masked == [24, 23, 20, 16, 11, 6]  # 24 cos(pi k / 12), rounded down in fp32
    first = network(ids, BLOCK, slice(V.bins_offset, V.size))[0].softmax(-1).max(-1)
    kept = counting.asked[1][0][0, BLOCK] != V.mask
    assert torch.equal(tokens[kept], first.indices[kept]) and torch.equal(probability[kept], first.values[kept])
    assert first.values[kept].min() >= first.values[~kept].max()
    assert ((tokens >= 0) & (tokens < 64)).all()
    again, _ = decode.run(decode.action(network, V, ids, BLOCK, steps=6))
    assert torch.equal(tokens, again)


@pytest.mark.parametrize('steps', [1, 4])
@pytest.mark.parametrize('sampling', [False, True])
def test_given_tokens_stay_and_condition_the_rest(network, ids, steps, sampling):
    draw = decode.Sampling(1.0, torch.Generator().manual_seed(0)) if sampling else None
    free, _ = decode.run(decode.action(network, V, ids, BLOCK, steps=steps))
    ids[0, 20:30] = torch.arange(10) + V.bins_offset
    tokens, probability = decode.run(decode.action(network, V, ids, BLOCK, given=10, steps=steps, sampling=draw))
    assert tokens[:10].tolist() == list(range(10)) and (probability[:10] == 1).all()
    assert (probability[10:] < 1).all() and not torch.equal(tokens[10:], free[10:])
    ids[0, BLOCK] = torch.arange(24) + V.bins_offset
    everything, ones = decode.run(decode.action(network, V, ids, BLOCK, given=24, steps=steps))
    assert everything.tolist() == list(range(24)) and (ones == 1).all()


def test_same_generator_same_sample(network, ids):
    def draw(seed):
        sampling = decode.Sampling(1.0, torch.Generator().manual_seed(seed))
        return decode.run(decode.action(network, V, ids, BLOCK, steps=3, sampling=sampling))[0].tolist()

    assert draw(0) == draw(0) != draw(1)


def test_guidance_pushes_away_from_the_unguided_prompt(network, ids):
    other = torch.cat((ids[:, :5], ids[:, 15:]), 1)
    other_block = slice(10, 34)
    codes = slice(V.image_offset, V.image_offset + V.codes)
    tokens, _ = decode.run(decode.image(network, V, ids, BLOCK, 1, guidance=2.0, unguided=(other, other_block)))
    expected = 3 * network(ids, BLOCK, codes) - 2 * network(other, other_block, codes)
    assert torch.equal(tokens, expected[0].argmax(-1))
    with pytest.raises(ValueError, match='guidance needs'):
        decode.run(decode.image(network, V, ids, BLOCK, 1, guidance=2.0))


def test_text_commits_equal_shares_and_only_asks_for_what_is_masked(network, ids):
    counting = Counting(network)
    tokens, probability = decode.run(decode.text(counting, V, ids, BLOCK, steps=7, stop=False))
    asked = [len(rows) for _, rows, _ in counting.asked]
    assert asked == [24, 20, 16, 12, 9, 6, 3]  # 24 = 3 * 7 + 3: the first three steps commit one more
    assert len(tokens) == 24 and ((probability > 0) & (probability < 1)).all()


def test_a_threshold_saves_steps_but_never_adds_any(network, ids):
    for threshold, at_most in ((0.0, 1), (0.02, 23), (1.0, 24)):
        counting = Counting(network)
        tokens, _ = decode.run(decode.text(counting, V, ids, BLOCK, steps=24, threshold=threshold, stop=False))
        assert len(counting.asked) <= at_most and len(tokens) == 24


class Fixed:
    """A network that always says the same: in slot i of the block the token of `wanted`, sure by `logit`."""

    def __init__(self, wanted, logit):
        self.wanted, self.logit, self.asked = wanted, logit, 0

    def __call__(self, ids, rows, vocabulary, valid=None, cache=None):
        self.asked += 1
        logits = torch.zeros(1, len(rows), V.size)
        for i, row in enumerate(rows.tolist()):
            slot = row - BLOCK.start
            logits[0, i, self.wanted[slot]] = self.logit[slot]
        return logits


def test_text_ends_early_only_when_all_before_the_end_is_there(ids):
    wanted = [3, 4, 5, V.eos, *range(6, 26)]
    sure = Fixed(wanted, [9.0] * 4 + [1.0] * 20)
    tokens, probability = decode.run(decode.text(sure, V, ids, BLOCK, steps=24))
    assert tokens.tolist() == [3, 4, 5, V.eos] and len(probability) == 4 and sure.asked == 4
    late = Fixed(wanted, [9.0, 9.0, 1.0, 9.0] + [5.0] * 20)  # slot 2 comes last
    tokens, _ = decode.run(decode.text(late, V, ids, BLOCK, steps=24))
    assert tokens.tolist() == [3, 4, 5, V.eos] and late.asked == 24
    tokens, _ = decode.run(decode.text(sure, V, ids, BLOCK, steps=24, stop=False))
    assert tokens.tolist() == wanted


def test_a_job_does_one_forward_per_step(network, ids):
    counting = Counting(network)
    job = decode.Job(decode.image(counting, V, ids, BLOCK, 5))
    for forward in range(1, 6):
        assert not job.done
        assert job.step() == (forward == 5)
        assert len(counting.asked) == forward
    assert job.step() and len(counting.asked) == 5 and job.longest > 0
    expected, _ = decode.run(decode.image(network, V, ids, BLOCK, 5))
    assert torch.equal(job.result[0], expected)
    assert torch.equal(decode.Job(decode.image(network, V, ids, BLOCK, 5)).run()[0], expected)


def test_the_prefix_cache_is_exact_until_the_block_changes(network, ids):
    bins = slice(V.bins_offset, V.size)
    cache = KeyValues(BLOCK.start)
    exact = network(ids, BLOCK, bins)
    assert torch.equal(network(ids, BLOCK, bins, cache=cache), exact)
    assert (network(ids, BLOCK, bins, cache=cache) - exact).abs().max() < 1e-5
    index = torch.arange(BLOCK.start, BLOCK.stop)
    assert (network(ids, index, bins, cache=cache) - exact).abs().max() < 1e-5
    ids[0, BLOCK.start + 3] = V.bins_offset
    changed = network(ids, BLOCK, bins)
    close = network(ids, BLOCK, bins, cache=cache)
    assert 1e-5 < (close - changed).abs().max() < (exact - changed).abs().max()


def test_deviation_of_the_prefix_cache_is_measured(network, ids):
    one = decode.cache_deviation(lambda cached: decode.text(network, V, ids, BLOCK, 1, cached=cached))
    assert one == decode.Deviation(1.0, 0.0)
    many = decode.cache_deviation(lambda cached: decode.image(network, V, ids, BLOCK, 8, cached=cached))
    assert 0 <= many.equal <= 1 and many != one


def test_cached_steps_compute_the_block_alone(network, ids):
    counting = Counting(network)
    decode.run(decode.action(counting, V, ids, BLOCK, steps=3, cached=True))
    caches = {id(cache) for _, _, cache in counting.asked}
    assert len(caches) == 1 and counting.asked[0][2].length == BLOCK.start


def test_padding_and_index_rows_give_the_logits_of_the_plain_forward(network, ids):
    plain = network(ids, slice(0, 45), slice(0, V.size))
    padded = torch.cat((ids.new_full((1, 6), V.pad), ids), 1)
    valid = torch.arange(51)[None] >= 6
    assert (network(padded, slice(6, 51), slice(0, V.size), valid) - plain).abs().max() < 1e-5
    rows = torch.tensor([3, 17, 44])
    assert (network(ids, rows, slice(5, 9)) - plain[:, rows, 5:9]).abs().max() < 1e-5


@pytest.mark.parametrize('padded', [False, True])
def test_what_trains_attends_as_what_decodes(ids, padded):
    with torch.inference_mode(False):
        network = Network(NetworkConfig(64, 3, 4, 2, 128, 10000.0, 1e-5, V.size))
        init_weights(network, 0)
        batch, length = torch.cat([ids, ids.flip(1)]).clone(), ids.shape[1]
        block, valid = slice(length - 4, length), torch.arange(length) >= torch.tensor([[0], [3]]) if padded else None
        training = network(batch, block, slice(0, 10), valid)
        with torch.no_grad():
            decoding = network(batch, block, slice(0, 10), valid)
    assert training.requires_grad and torch.allclose(training, decoding, atol=1e-5)
