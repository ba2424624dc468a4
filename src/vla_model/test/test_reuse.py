"""Acts that compute again only what changed since the act before."""

import numpy as np
import pytest

from vla_model.families.mmact import loading
from vla_model.loading import LoadOptions
from vla_model.types import Observation


class Counting:
    """The network, and how many positions each forward computed."""

    def __init__(self, engine):
        self.network, self.encoder, self.encode, self.computed = engine.network, engine.encoder, engine.encode, []

    def __call__(self, ids, rows, vocabulary, valid=None, cache=None):
        fresh = cache is None or not cache.layers
        self.computed.append(ids.shape[1] if fresh else len(cache.positions))
        return self.network(ids, rows, vocabulary, valid, cache)


def observation(moved=0.0, noise=0, instruction='go'):
    image = np.full((128, 128, 3), 90, np.uint8)
    image[:16, :16] += np.uint8(noise)
    joints = np.array([moved, -0.78, 0.0, -2.35, 0.0, 1.57, 0.78])
    return Observation(0, {'front': image, 'wrist': image}, joints, np.zeros(7), 0.04, instruction)


def test_only_what_changed_is_computed_and_every_so_often_all_of_it():
    p, exact = (
        loading.load('random-nano', LoadOptions(threads=1, kv_reuse=3)),
        loading.load('random-nano', LoadOptions(threads=1)),
    )
    p.engine = counting = Counting(p.engine)
    block = 64
    for i, seen in enumerate(observation(0.1 * k) for k in range(5)):
        ours, theirs = p.act(seen).chunk, exact.act(seen).chunk
        if i in (0, 3):
            assert np.array_equal(ours.positions, theirs.positions)
    length = counting.computed[0]
    assert counting.computed == [length, block + 2, block + 2, length, block + 2]  # one joint, the block, its end
    p.act(observation(0.4, instruction='stop'))
    assert counting.computed[-1] >= length - 4, 'another instruction is another prompt'
    same = p.act(observation(0.4, instruction='stop')).chunk
    assert counting.computed[-1] == block + 1
    assert np.allclose(same.positions, exact.act(observation(0.4, instruction='stop')).chunk.positions, atol=2e-3)


def test_it_is_off_by_default_and_for_eager_alone():
    assert loading.load('random-nano', LoadOptions(threads=1)).kv_reuse == 1
    for arguments in ({'kv_reuse': 0}, {'kv_reuse': 2, 'act_steps': 2}, {'kv_reuse': 2, 'engine': 'auto'}):
        with pytest.raises(ValueError, match='kv_reuse must be 1, or more with engine'):
            loading.load('random-nano', LoadOptions(threads=1, **arguments))
