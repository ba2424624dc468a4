"""The training loop: the same on a CPU and a GPU, gone on with from any of its checkpoints.

What a step sees follows from the seed and the number of the step alone, so a run that was cut goes on as if it had not
been. A checkpoint is a folder `step-N` of safetensors files of at most 15 MB and a JSON file; `log.csv` grows beside.
"""

import csv
import json
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import load_file
from torch import Tensor

from vla_model import nano
from vla_model.config import NetworkConfig
from vla_model.network import Network
from vla_training import shards, structure
from vla_training.objective import MODES, Objective
from vla_training.pieces import read_pieces, write_pieces
from vla_training.recipe import Recipe
from vla_training.shards import Tokens

COLUMNS = ('step', 'seconds', 'lr', 'grad_norm', 'samples_per_s', *(f'{p}{m}{q}' for p in ('', 'val_') for m in MODES
           for q in ('_loss', '_right')))  # fmt: skip


@dataclass(frozen=True)
class Split:
    """Rows to learn from and rows only to look at; by episode."""

    train: Tensor
    validation: Tensor

    @classmethod
    def of(cls, tokens: Tokens, share: float) -> 'Split':
        episodes = tokens.episode.unique()
        order = episodes[torch.randperm(len(episodes), generator=torch.Generator().manual_seed(0))]
        held = order[: round(share * len(episodes))]
        looked_at = torch.isin(tokens.episode, held)
        return cls((~looked_at).nonzero()[:, 0], looked_at.nonzero()[:, 0])


class Trainer:
    """One run in one folder."""

    def __init__(self, recipe: Recipe, tokens: Tokens, out: Path, device: str = 'cpu') -> None:
        """Goes on from the newest checkpoint in `out` where there is one.

        Raises ValueError where it was made with another recipe or other data.
        """
        self.recipe, self.tokens, self.out = recipe, tokens, out
        self.device = torch.device(device)
        self.objective = Objective(tokens, recipe.masking, self.device)
        self.split = Split.of(tokens, recipe.validation)
        if not len(self.split.train):
            raise ValueError('there is no episode to learn from: lower validation or collect more')
        self.network = self._make_network()
        self.optimizer = self._make_optimizer()
        self.average = {n: p.detach().clone() for n, p in self.network.named_parameters()}
        self.step, self.seconds = 0, 0.0
        out.mkdir(parents=True, exist_ok=True)
        newest = newest_checkpoint(out)
        if newest is not None:
            self._restore(newest)
        self._forward: Callable = torch.compile(self.objective.loss) if recipe.compile else self.objective.loss

    # ---- what is trained

    def _make_network(self) -> Network:
        shape, vocabulary = self.recipe.network, self.tokens.config.vocabulary
        config = NetworkConfig(
            d_model=shape.d_model,
            n_layers=shape.n_layers,
            n_heads=shape.n_heads,
            n_kv_heads=shape.n_heads,
            mlp_hidden_size=shape.mlp_hidden_size,
            rope_theta=10000.0,
            rms_norm_eps=1e-5,
            vocab_size=vocabulary.size,
        )
        network = Network(config)
        nano.init_weights(network, self.recipe.seed)
        with torch.no_grad():  # what is added to the residual stream begins small, or depth makes it loud (GPT-2)
            for block in network.model['transformer'].blocks:  # type: ignore[union-attr]
                block.attn_out.weight *= (2 * shape.n_layers) ** -0.5
                block.ff_out.weight *= (2 * shape.n_layers) ** -0.5
        if self.recipe.structured_tables:
            structure.attach(network, vocabulary, self.recipe.seed)
        return network.to(self.device)

    def _make_optimizer(self) -> torch.optim.AdamW:
        matrices = [p for n, p in self.network.named_parameters() if p.ndim > 1 and '.blocks.' in n]
        ids = {id(p) for p in matrices}
        others = [p for p in self.network.parameters() if id(p) not in ids]
        groups = [{'params': matrices, 'weight_decay': self.recipe.weight_decay}, {'params': others, 'weight_decay': 0}]
        return torch.optim.AdamW(groups, lr=self.recipe.lr, betas=(0.9, self.recipe.beta2), fused=True)

    def lr(self, step: int) -> float:
        """Linear warm-up, then a cosine down to min_lr."""
        r = self.recipe
        if step < r.warmup:
            return r.lr * (step + 1) / r.warmup
        done = (step - r.warmup) / max(1, r.steps - r.warmup)
        return r.lr * (r.min_lr + (1 - r.min_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))

    # ---- steps

    def run(self, until: float = math.inf) -> int:
        """Trains to the end of the recipe, or until time.monotonic() passes `until`. Saves, and returns the step."""
        r = self.recipe
        columns = (TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, refresh_per_second=1) as bar:
            line = bar.add_task('training', total=r.steps, completed=self.step)
            sums: dict[str, list[float]] = {}
            began, since = time.monotonic(), self.step
            while self.step < r.steps and time.monotonic() < until:
                found, norm = self._train_step()
                for name, value in found.items():
                    sums.setdefault(name, []).append(value)
                self.step += 1
                bar.update(line, completed=self.step)
                if self.step % r.log_every == 0 or self.step == r.steps:
                    took = time.monotonic() - began
                    self.seconds += took
                    row = {name: sum(v) / len(v) for name, v in sums.items()}
                    row |= {'step': self.step, 'seconds': self.seconds, 'lr': self.lr(self.step - 1), 'grad_norm': norm}
                    row['samples_per_s'] = (self.step - since) * r.batch / took
                    if self.step % r.save_every == 0 or self.step == r.steps:
                        row |= self.validate()
                    self._log(row)
                    bar.update(line, description=_describe(row))
                    sums, began, since = {}, time.monotonic(), self.step
                if self.step % r.save_every == 0:
                    self.save()
        if self.step % r.save_every:
            self.save()
        return self.step

    def _train_step(self) -> tuple[dict[str, float], float]:
        r, lr = self.recipe, self.lr(self.step)
        for group in self.optimizer.param_groups:
            group['lr'] = lr
        self.network.train()
        generator = torch.Generator(self.device).manual_seed((r.seed << 32) + self.step)
        rows = self._rows(generator)
        weights = r.stage(self.step).weights
        found: dict[str, Tensor] = {}
        for mode, weight in weights.items():
            part = rows[: r.size(mode)]
            for some in part.split(r.micro_batch or len(part)):
                with self._autocast():
                    loss, right = self._forward(self.network, mode, some, generator)
                share = len(some) / len(part)
                (loss * (weight * share)).backward()
                found[f'{mode}_loss'] = found.get(f'{mode}_loss', 0) + loss.detach() * share
                found[f'{mode}_right'] = found.get(f'{mode}_right', 0) + right * share
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), r.grad_clip)
        if not torch.isfinite(norm):
            raise ValueError(f'the gradient of step {self.step} is not finite: lower lr, or train without amp')
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        decay = min(r.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.values()), list(self.network.parameters()), 1 - decay)
        return {name: float(value) for name, value in found.items()}, float(norm)

    def _rows(self, generator: torch.Generator) -> Tensor:
        """(batch,) rows of this step: every epoch is a permutation, drawn from seed and epoch."""
        train, batch = self.split.train, self.recipe.batch
        first = self.step * batch
        picked: list[int] = []
        while len(picked) < batch:
            epoch, place = divmod(first + len(picked), len(train))
            seed = (self.recipe.seed << 20) + epoch
            if getattr(self, '_epoch', None) != seed:
                self._epoch = seed
                self._order = train[torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))]
            picked += self._order[place : place + batch - len(picked)].tolist()
        return torch.tensor(picked, device=self.device)

    def _autocast(self):
        return torch.autocast(self.device.type, torch.bfloat16) if self.recipe.amp else nullcontext()

    @torch.no_grad()
    def validate(self, batches: int = 8) -> dict[str, float]:
        """Losses over some held-out rows, with the averaged weights; always the same rows and masks."""
        if not len(self.split.validation):
            return {}
        generator = torch.Generator().manual_seed(1)
        rows = self.split.validation[torch.randperm(len(self.split.validation), generator=generator)]
        found: dict[str, float] = {}
        trained = {mode for stage in self.recipe.stages for mode in stage.weights}
        own = {n: p.detach().clone() for n, p in self.network.named_parameters()}
        self._load_parameters(self.average)
        try:
            for mode in trained:
                totals = []
                for i, part in enumerate(rows.to(self.device).split(self.recipe.size(mode))[:batches]):
                    noise = torch.Generator(self.device).manual_seed(i)
                    with self._autocast():
                        totals.append(torch.stack(self.objective.loss(self.network, mode, part, noise)))
                loss, right = torch.stack(totals).mean(0).tolist()
                found |= {f'val_{mode}_loss': loss, f'val_{mode}_right': right}
        finally:
            self._load_parameters(own)
        return found

    def _load_parameters(self, values: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, p in self.network.named_parameters():
                p.copy_(values[name])

    def _log(self, row: dict[str, float]) -> None:
        path = self.out / 'log.csv'
        new = not path.exists()
        with path.open('a', newline='') as file:
            writer = csv.DictWriter(file, COLUMNS, restval='')
            if new:
                writer.writeheader()
            writer.writerow({k: f'{v:.6g}' for k, v in row.items()})

    # ---- checkpoints

    def averaged(self) -> dict[str, Tensor]:
        """State of a plain network with the averaged weights, fp32 on the CPU."""
        state = {name: value.float().cpu() for name, value in self.average.items()}
        return structure.fold(state, self.tokens.config.vocabulary)

    def save(self) -> Path:
        """Writes `step-N` and removes the checkpoints before it."""
        folder = self.out / f'step-{self.step:08d}'
        temporary = self.out / '.writing'
        temporary.mkdir(exist_ok=True)
        for old in temporary.iterdir():
            old.unlink()
        state = {f'weight.{n}': p.detach() for n, p in self.network.named_parameters()}
        state |= {f'average.{n}': value for n, value in self.average.items()}
        for (name, p), _ in zip(self.network.named_parameters(), self.average, strict=True):
            for key, value in self.optimizer.state.get(p, {}).items():
                state[f'optimizer.{key}.{name}'] = value
        write_pieces(temporary, state)
        record = {'step': self.step, 'seconds': self.seconds, 'recipe': self.recipe.to_dict(), 'rows': len(self.tokens)}
        (temporary / 'training.json').write_text(json.dumps(record, indent=2) + '\n')
        temporary.rename(folder)
        for old in sorted(self.out.glob('step-*')):
            if old != folder:
                for file in old.iterdir():
                    file.unlink()
                old.rmdir()
        return folder

    def _restore(self, folder: Path) -> None:
        record = json.loads((folder / 'training.json').read_text())
        now = json.loads(json.dumps(self.recipe.to_dict()))
        changed = [k for k in now if k not in _MAY_CHANGE and record['recipe'].get(k) != now[k]]
        if changed or record['rows'] != len(self.tokens):
            what = ', '.join(changed) or 'the data'
            raise ValueError(f'{folder} was trained with another {what}: give another folder, or restore the recipe')
        state = read_pieces(folder)
        if any(not n.startswith(('weight.', 'average.', 'optimizer.')) for n in state):
            raise ValueError(f'{folder} is no checkpoint of a training run')
        names = [n for n, _ in self.network.named_parameters()]
        if missing := [n for n in names if f'weight.{n}' not in state]:
            raise ValueError(f'{folder} lacks {missing[0]}: a file of it is missing, copy it again')
        self._load_parameters({n: state[f'weight.{n}'].to(self.device) for n in names})
        for n in names:
            self.average[n].copy_(state.get(f'average.{n}', state[f'weight.{n}']))
        for name, p in self.network.named_parameters():
            found = {k: state[f'optimizer.{k}.{name}'] for k in ('step', 'exp_avg', 'exp_avg_sq')
                     if f'optimizer.{k}.{name}' in state}  # fmt: skip
            if found:
                self.optimizer.state[p] = {k: v if k == 'step' and self.device.type == 'cpu' else v.to(self.device)
                                           for k, v in found.items()}  # fmt: skip
        self.step, self.seconds = record['step'], record['seconds']


_MAY_CHANGE = ('log_every', 'save_every', 'micro_batch', 'compile', 'amp')


def newest_checkpoint(out: Path) -> Path | None:
    """The folder of the newest whole checkpoint of a run."""
    found = sorted(p for p in out.glob('step-*') if (p / 'training.json').is_file())
    return found[-1] if found else None


def _describe(row: dict[str, float]) -> str:
    losses = [f'{mode} {row[f"{mode}_loss"]:.3f}' for mode in MODES if f'{mode}_loss' in row]
    return f'{"  ".join(losses)}  {row["samples_per_s"]:.0f}/s'


def export(trainer: Trainer, folder: Path) -> None:
    """Writes the averaged weights as a checkpoint folder that `vla_model.policy.load` reads."""
    from dataclasses import replace

    from vla_model import checkpoint
    from vla_model.image_tokenizer import ImageTokenizer

    tokens = trainer.tokens
    config = replace(tokens.config, name=trainer.recipe.name, trained=True, network=trainer.network.config)
    image = ImageTokenizer(config.image_tokenizer)
    image.load_state_dict(load_file(tokens.folder / checkpoint.IMAGE_FILE))
    checkpoint.write(folder, config, tokens.text, trainer.averaged(), image.state_dict())
    record = {'recipe': trainer.recipe.to_dict(), 'step': trainer.step, 'seconds': trainer.seconds,
              'frames': len(tokens), 'episodes': len(tokens.episode.unique())}  # fmt: skip
    (folder / 'training.json').write_text(json.dumps(record, indent=2) + '\n')


def train(recipe: Recipe, tokens: Path, out: Path, *, device: str = 'cpu', minutes: float = math.inf) -> Path:
    """Trains, or goes on with, the run in `out`; writes `out/checkpoint` and returns it."""
    trainer = Trainer(recipe, shards.read(tokens), out, device)
    trainer.run(time.monotonic() + 60 * minutes)
    export(trainer, out / 'checkpoint')
    return out / 'checkpoint'
