"""Trains the model on a CPU, a GPU or several GPUs. A run continues from any of its checkpoints.

The data of a step depends on the seed and the number of the step alone. An interrupted run therefore continues with the
same numbers, and several processes learn the same as one. `log.csv` and its curves, `loss.png`, grow beside `step-N`.
"""

import math
import os
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from vla_training import plot
from vla_training.data import shards
from vla_training.data.shards import Tokens
from vla_training.train import export, initial, run_state
from vla_training.train.distributed import World, forget_gathered, local
from vla_training.train.objective import MODES, Objective
from vla_training.train.recipe import Recipe
from vla_training.training_loop import LOG, TrainingLoop

COLUMNS = ('step', 'seconds', 'lr', 'grad_norm', 'samples_per_s', *(f'{p}{m}{q}' for p in ('', 'val_') for m in MODES
           for q in ('_loss', '_right')))  # fmt: skip


@dataclass(frozen=True)
class Split:
    """Rows for training and for validation, split by episode."""

    train: Tensor
    validation: Tensor

    @classmethod
    def of(cls, tokens: Tokens, share: float) -> 'Split':
        episodes = tokens.episode.unique()
        order = episodes[torch.randperm(len(episodes), generator=torch.Generator().manual_seed(0))]
        held = order[: round(share * len(episodes))]
        validation = torch.isin(tokens.episode, held)
        return cls((~validation).nonzero()[:, 0], validation.nonzero()[:, 0])


class Trainer(TrainingLoop):
    """One run of the model in one folder."""

    columns, label, rate = COLUMNS, 'training', 'samples_per_s'

    def __init__(
        self, recipe: Recipe, tokens: Tokens, out: Path, device: str = 'cpu', world: World | None = None
    ) -> None:
        """Continue from the newest checkpoint in `out`, if there is one. world: the processes that share the run.

        Raises ValueError for a checkpoint of another recipe or other data.
        """
        super().__init__(recipe, out)
        self.recipe, self.tokens = recipe, tokens
        self.world = world or World(torch.device(device))
        self.device = self.world.device
        self.objective = Objective(tokens, recipe.masking, self.device)
        self.split = Split.of(tokens, recipe.validation)
        train = self.split.train
        static, labelled = tokens.static[train], tokens.action[train, 0, 0] >= 0
        self._pools = {
            'rows': train,
            'frames of episodes': train[~static],
            'static-scene samples': train[static & ~labelled],
            'labelled static-scene samples': train[static & labelled],
        }
        self._orders: dict[str, tuple[int, Tensor]] = {}  # pool -> seed, permutation
        if not len(self.split.train):
            raise ValueError('there is no episode to learn from: lower validation or collect more')
        self.network, self._base = initial.make(recipe, tokens, self.world)
        self.trained = {n: p for n, p in self.network.named_parameters() if p.requires_grad}
        self.optimizers = self._make_optimizers()
        self.average = {n: p.detach().clone() for n, p in self.trained.items()} if recipe.ema else {}
        self._norm = 0.0  # of the newest gradient
        out.mkdir(parents=True, exist_ok=True)
        newest = run_state.newest(out)
        if newest is not None:
            then = run_state.check(newest, self._progress())
            run_state.restore(newest, self.trained, self.average, self.optimizers)
            self.step, self.seconds = then.step, then.seconds
        whole = recipe.compile and self.world.mesh is None
        if whole:  # modes, padding and the last batches of a validation need more shapes than the default limit
            torch._dynamo.config.recompile_limit = 64
        self._loss: Callable = torch.compile(self.objective.loss) if whole else self.objective.loss

    def _make_optimizers(self) -> list[torch.optim.Optimizer]:
        r = self.recipe
        matrices = [p for n, p in self.trained.items() if p.ndim > 1 and '.blocks.' in n]
        ids = {id(p) for p in matrices}
        others = [p for p in self.trained.values() if id(p) not in ids]
        if r.optimizer == 'muon':
            if self.world.mesh is not None:
                raise ValueError('muon needs whole matrices, and --shard splits them: use adamw')
            # Steps are as large as AdamW's, so that both can have the same lr.
            muon = torch.optim.Muon(matrices, lr=r.lr, weight_decay=r.weight_decay, adjust_lr_fn='match_rms_adamw')
            return [muon, torch.optim.AdamW(others, lr=r.lr, betas=(0.9, r.beta2), weight_decay=0, fused=True)]
        groups = [{'params': matrices, 'weight_decay': r.weight_decay}, {'params': others, 'weight_decay': 0}]
        return [torch.optim.AdamW(groups, lr=r.lr, betas=(0.9, r.beta2), fused=True)]

    # ---- steps

    @property
    def writes(self) -> bool:
        return self.world.first

    def runs_on(self, until: float) -> bool:
        return self.world.agree(super().runs_on(until))

    def complete(self, row: dict[str, float]) -> None:
        row['grad_norm'] = self._norm
        if self.step % self.recipe.save_every == 0 or self.step == self.recipe.steps:
            row |= self.validate()

    def describe(self, row: dict[str, float]) -> str:
        losses = [f'{mode} {row[f"{mode}_loss"]:.3f}' for mode in MODES if f'{mode}_loss' in row]
        return f'{"  ".join(losses)}  {row[self.rate]:.0f}/s'

    def train_step(self) -> dict[str, float]:
        r, lr = self.recipe, self.lr(self.step)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group['lr'] = lr
        self.network.train()
        generator = torch.Generator(self.device).manual_seed((r.seed << 32) + self.step)
        if r.lora.dropout:
            torch.manual_seed(((r.seed << 32) + self.step) * self.world.ranks + self.world.rank)
        rows = self._rows()
        found: dict[str, Tensor] = {}
        stage = r.stage(self.step)
        for mode, weight in stage.weights.items():
            found |= self._losses(mode, rows[r.rows(mode, stage)], generator, weight)
        norm = torch.nn.utils.clip_grad_norm_(self.trained.values(), r.grad_clip)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        if not torch.isfinite(norm):
            raise ValueError(f'the gradient of step {self.step} is not finite: lower lr, or train without amp')
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if self.average:
            decay = min(r.ema, (1 + self.step) / (10 + self.step))
            own = [local(p) for p in self.trained.values()]
            torch._foreach_lerp_([local(value) for value in self.average.values()], own, 1 - decay)
        self._norm = float(norm)
        return {name: float(value) for name, value in found.items()}

    def _losses(self, mode: str, rows: Tensor, generator: torch.Generator, weight: float = 0.0) -> dict[str, Tensor]:
        """Return loss and share of right tokens of a mode over rows, of all processes. weight: also add gradients."""
        with self._autocast():  # every process draws all of it, so each has its own forward of what is given
            batch = self.objective.draw(mode, rows, generator, self.network)
        total = torch.zeros(2, device=self.device)
        if batch is not None:
            for part in batch.parts(self.recipe.micro_batch, self.world.rank, self.world.ranks):
                with self._autocast():
                    loss, right = self._loss(self.network, part)
                if weight:  # gradients of processes are averaged, losses are parts of a sum
                    (loss * (weight * self.world.ranks)).backward()
                total += torch.stack([loss.detach(), right])
        return dict(zip((f'{mode}_loss', f'{mode}_right'), self.world.sum(total), strict=True))

    def _rows(self) -> Tensor:
        """Return the rows of this step (batch,), static-scene samples last: the first rows also make other prompts."""
        batch, stage = self.recipe.batch, self.recipe.stage(self.step)
        if stage.static_scenes < 0:
            picked = self._pick('rows', batch)
        else:
            static, labelled = round(stage.static_scenes * batch), round(stage.labelled_scenes * batch)
            picked = self._pick('frames of episodes', batch - static - labelled)
            picked += self._pick('labelled static-scene samples', labelled)
            picked += self._pick('static-scene samples', static)
        return torch.tensor(picked, device=self.device)

    def _pick(self, pool: str, count: int) -> list[int]:
        """Return the next `count` rows of a pool. Every epoch is a permutation, drawn from seed and epoch."""
        rows = self._pools[pool]
        if count and not len(rows):
            raise ValueError(f'{self.tokens.folder} has no {pool}: make some, or change the stages of the recipe')
        picked: list[int] = []
        while len(picked) < count:
            epoch, place = divmod(self.step * count + len(picked), len(rows))
            seed = (self.recipe.seed << 20) + epoch
            if self._orders.get(pool, (-1,))[0] != seed:
                order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
                self._orders[pool] = seed, rows[order]
            picked += self._orders[pool][1][place : place + count - len(picked)].tolist()
        return picked

    def _autocast(self):
        mixed = self.recipe.amp and self.world.mesh is None  # split parameters are gathered in bf16 as it is
        return torch.autocast(self.device.type, torch.bfloat16) if mixed else nullcontext()

    @torch.no_grad()
    def validate(self, batches: int = 8) -> dict[str, float]:
        """Return the losses over held-out rows with the averaged weights. Rows and masks are always the same."""
        if not len(self.split.validation):
            return {}
        generator = torch.Generator().manual_seed(1)
        rows = self.split.validation[torch.randperm(len(self.split.validation), generator=generator)]
        found: dict[str, float] = {}
        self.network.eval()
        own = {n: local(p).clone() for n, p in self.trained.items()} if self.average else {}
        self._write({n: local(value) for n, value in self.average.items()})
        try:
            for mode in MODES:
                stages = [stage for stage in self.recipe.stages if mode in stage.weights]
                size = len(self.recipe.rows(mode, stages[-1])) if stages else 0
                totals: dict[str, list[Tensor]] = {}
                for i, part in enumerate(rows.to(self.device).split(size)[:batches] if size else ()):
                    noise = torch.Generator(self.device).manual_seed(i)
                    for name, value in self._losses(mode, part, noise).items():
                        totals.setdefault(f'val_{name}', []).append(value)
                found |= {name: float(torch.stack(values).mean()) for name, values in totals.items()}
        finally:
            self._write(own)
        return found

    @torch.no_grad()
    def _write(self, values: dict[str, Tensor]) -> None:
        """Write this process's parts of parameters by name."""
        for name, value in values.items():
            local(self.trained[name]).copy_(value)
        forget_gathered(self.network)

    # ---- checkpoints

    def averaged(self) -> dict[str, Tensor]:
        """Return the averaged weights as the state of a plain network, fp32 on the CPU."""
        return dict(export.plain(self))

    def save(self) -> Path:
        """Write `step-N` and remove earlier checkpoints. Return its folder."""
        if self.world.first and (self.out / LOG).is_file():
            plot.plot_log(self.out / LOG, self.out / 'loss.png')
        return run_state.save(self.out, self._progress(), self.trained, self.average, self.optimizers, self.world)

    def _progress(self) -> run_state.Progress:
        return run_state.Progress(self.step, self.seconds, self.recipe, len(self.tokens), self._base)


def train(
    recipe: Recipe, tokens: Path | Sequence[Path], out: Path, *, device: str = 'cpu', minutes: float = math.inf,
    threads: int = 0, shard: bool = False,
) -> Path:  # fmt: skip
    """Train, or continue, the run in `out`. Write `out/checkpoint` and return it.

    tokens: a folder, or several, see shards.read. threads: of torch, on a CPU; 0 is all cores, in equal parts where
    processes share the machine. shard: this is one of the processes that torchrun started, which share the run.
    """
    cores = len(os.sched_getaffinity(0)) // int(os.environ.get('LOCAL_WORLD_SIZE', '1'))
    torch.set_num_threads(threads or max(1, cores))
    world = World.join(device) if shard else World(torch.device(device))
    folders = [tokens] if isinstance(tokens, Path) else tokens
    checkpoint = _train(recipe, shards.read(*folders), out, world, minutes)
    world.leave()  # not where it failed: others may be waiting for this process, and torchrun ends them
    return checkpoint


def _train(recipe: Recipe, tokens: Tokens, out: Path, world: World, minutes: float) -> Path:
    trainer = Trainer(recipe, tokens, out, world=world)
    trainer.run(time.monotonic() + 60 * minutes)
    export.export(trainer, out / 'checkpoint')
    return out / 'checkpoint'
