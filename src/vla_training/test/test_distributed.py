"""Two processes that torchrun starts, on the CPU, against one."""

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from vla_model.families.mmact import loading
from vla_model.loading import LoadOptions
from vla_training.train.distributed import World
from vla_training.train.recipe import Recipe
from vla_training.train.trainer import Trainer, train

CONTENT = {
    'stages': [{'steps': 2, 'action': 0.0, 'text': 0.1, 'image': 0.1},
               {'steps': 6, 'action': 1.0, 'text': 0.05, 'image': 0.05}],
    'masking': {'plan_tokens': 32, 'state_noise': 0.0, 'label_sigma': 1.0},
    'batch': 15, 'text_batch': 5, 'image_batch': 3, 'warmup': 2, 'log_every': 2, 'save_every': 4, 'amp': False,
    'validation': 0.25, 'ema': 0.9,
}  # fmt: skip
NOTHING = CONTENT | {'network': {'d_model': 32, 'n_layers': 2, 'n_heads': 2, 'mlp_hidden_size': 64}}


def fit(folder: Path, tokens: Path, out: Path, content: dict) -> str:
    """`fit RECIPE --shard` in two processes, which import what a machine without ROS has."""
    recipe = folder / 'recipe.yaml'
    recipe.write_text(yaml.safe_dump(content))
    source = Path(__file__).parents[2]
    env = os.environ | {'PYTHONPATH': f'{source / "vla_model"}:{source / "vla_training"}', 'OMP_NUM_THREADS': '1'}
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2', '-m']
    command += ['vla_training.cli', 'fit', str(recipe), '--shard', '--tokens', str(tokens), '--out', str(out)]
    command += ['--threads', '1']
    with subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        try:
            printed, _ = process.communicate(timeout=100)
        except subprocess.TimeoutExpired:  # torchrun's processes would outlive it
            os.killpg(process.pid, signal.SIGKILL)
            raise
    assert process.returncode == 0, printed
    return printed


def check_same(one: Trainer, two: Trainer) -> None:
    """Weights, averages and moments of two runs."""
    assert one.step == two.step and one.trained.keys() == two.trained.keys()
    for name, p in one.trained.items():
        q = two.trained[name]
        assert torch.allclose(p, q, atol=1e-5), name
        assert torch.allclose(one.average[name], two.average[name], atol=1e-5), name
        a, b = one.optimizers[0].state[p], two.optimizers[0].state[q]
        assert float(a['step']) == float(b['step'])
        assert torch.allclose(a['exp_avg'], b['exp_avg'], atol=1e-5), name
        assert torch.allclose(a['exp_avg_sq'], b['exp_avg_sq'], atol=1e-7, rtol=1e-3), name


def rows(out: Path) -> list[dict[str, str]]:
    with (out / 'log.csv').open() as file:
        return list(csv.DictReader(file))


def test_a_run_goes_from_one_process_to_two_and_back(tokens_folder, tokens, tmp_path):
    recipe = Recipe.from_dict(NOTHING)
    whole = Trainer(recipe, tokens, tmp_path / 'whole')
    whole.run()
    cut = Trainer(recipe, tokens, tmp_path / 'cut')
    while cut.step < 4:
        cut.train_step()
        cut.step += 1
    cut.save()
    printed = fit(tmp_path, tokens_folder, tmp_path / 'cut', NOTHING | {'micro_batch': 3, 'recompute': True})
    assert printed.count('checkpoint:') == 1
    again = Trainer(recipe, tokens, tmp_path / 'cut')
    check_same(whole, again)
    for one, two in zip(rows(tmp_path / 'whole')[2:], rows(tmp_path / 'cut'), strict=True):
        assert one.keys() == two.keys()
        for name in one.keys() - {'seconds', 'samples_per_s'}:
            assert (one[name] == '') == (two[name] == '')
            assert not one[name] or float(one[name]) == pytest.approx(float(two[name]), rel=1e-3, abs=1e-5), name
    exported = loading.load(tmp_path / 'cut' / 'checkpoint', LoadOptions(threads=1)).network.state_dict()
    assert all(torch.equal(value, exported[name]) for name, value in again.averaged().items())


@pytest.mark.slow
def test_lora_in_two_processes_is_lora_in_one(tokens_folder, tokens, tmp_path):
    base = train(Recipe.from_dict(NOTHING), tokens_folder, tmp_path / 'base', threads=1)
    content = CONTENT | {'init': str(base), 'lora': {'rank': 3, 'targets': ['q_proj', 'ff_out']}}
    one = Trainer(Recipe.from_dict(content), tokens, tmp_path / 'one')
    one.run()
    fit(tmp_path, tokens_folder, tmp_path / 'two', content)
    check_same(one, Trainer(Recipe.from_dict(content), tokens, tmp_path / 'two'))
    # In bf16 the numbers are others, but near: what is frozen is bf16, what is trained is not.
    mixed = content | {'amp': True}
    fit(tmp_path, tokens_folder, tmp_path / 'mixed', mixed)
    near = Trainer(Recipe.from_dict(mixed), tokens, tmp_path / 'mixed')
    assert {p.dtype for p in near.trained.values()} == {torch.float32}
    losses = [[float(r['action_loss']) for r in rows(tmp_path / out)[1:]] for out in ('one', 'mixed')]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_sharding_without_torchrun_is_refused(monkeypatch):
    monkeypatch.delenv('LOCAL_RANK', raising=False)
    with pytest.raises(ValueError, match='torchrun --nproc-per-node'):
        World.join('cpu')
