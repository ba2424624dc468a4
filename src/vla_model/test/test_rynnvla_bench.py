"""The benchmark of RynnVLA-002: its counts, and that both ways give the same answers."""

from dataclasses import replace

import pytest
import torch

from vla_model.bench import rynnvla as bench
from vla_model.config import NetworkConfig
from vla_model.families.rynnvla import preprocess
from vla_model.families.rynnvla.views import Views
from vla_model.families.rynnvla.vqgan import VqganConfig

TINY = NetworkConfig(32, 2, 4, 4, 48, 1e4, 1e-5, 65536, causal=True, qk_norm='layer')
TOKENIZER = VqganConfig(32, (1, 1, 1, 1, 1), 1, 8, 8192, 8)


@pytest.mark.parametrize(('pictures', 'backbone', 'head'), [(2, 7.59, 0.039), (4, 14.98, 0.080)])
def test_counts_of_7b_are_those_of_the_reference_within_a_twentieth(pictures, backbone, head):
    w = bench.work(pictures=pictures)
    assert w['tokens'] == {2: 579, 4: 1131}[pictures]
    assert w['backbone'] / 1e12 == pytest.approx(backbone, rel=0.05)
    assert w['head'] / 1e12 == pytest.approx(head, rel=0.05)
    assert w['picture'] / 1e9 == pytest.approx(137, rel=0.05)
    assert w['lm_head'] / 1e12 == pytest.approx({2: 0.31, 4: 0.61}[pictures], rel=0.05)


@torch.inference_mode()
def test_both_ways_give_the_same_chunks(monkeypatch):
    monkeypatch.setattr(preprocess, 'squash', lambda image: image)
    p = bench.Parts.make(TINY, TOKENIZER, torch.float32, side=64)
    torch.testing.assert_close(
        bench.continuous(p, Views(p.vqgan)), bench.reference_continuous(p, p.head), atol=1e-5, rtol=0
    )
    assert torch.equal(bench.discrete(p, Views(p.vqgan)), bench.reference_discrete(p))
    result = bench.bench_rynnvla(2, 'float32', 1, 1, replace(p))
    assert 'continuous' in bench.report(result)
