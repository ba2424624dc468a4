"""Trains the depth tokenizer on the depth maps of data sets (`./vla train collect --depth`).

The data of a step depends on the seed and the number of the step alone, so an interrupted run continues with the same
numbers. The folder of a run has depth_tokenizer.safetensors, log.csv, depth.png (maps beside their reconstructions) and
the state from which it continues.
"""

import json
import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from vla_model.config import read_json
from vla_model.tokens.depth_tokenizer import (
    FILE,
    DepthTokenizer,
    DepthTokenizerConfig,
    load_depth_tokenizer,
    save_depth_tokenizer,
)
from vla_training.data.features import DEPTH_SIDE, depth
from vla_training.data.pieces import read_pieces, write_pieces
from vla_training.lerobot import Dataset
from vla_training.training_loop import TrainingLoop

COLUMNS = ('step', 'seconds', 'lr', 'maps_per_s', 'loss', 'commitment', 'error_mm', 'raised_mm', 'used')
HELD = 0.05  # share of the episodes that are held out
EVERY = 4  # frames of an episode between two maps: neighbours differ little
DECAY = 0.98  # of the moving averages that the codes are
RESTART = 100  # steps between two restarts of codes without use
COMMITMENT = 0.25
MAY_CHANGE = ('steps', 'log_every', 'save_every')  # between two parts of a run
SURFACE = 0.03  # [m] nearer than its surroundings: pixels of the arm and of objects
AROUND = 33  # [px] side of the surroundings
RAISED = 8.0  # weight of such a pixel in the loss; the others have 1
SIMULATED = DepthTokenizerConfig(near=0.3, far=2.2)  # [m] range of the simulator's front camera


@dataclass(frozen=True)
class Settings:
    """Settings of a run."""

    steps: int = 4000
    batch: int = 32
    lr: float = 1e-3
    min_lr: float = 0.02  # share of lr at the end of the cosine
    warmup: int = 50  # steps
    seed: int = 0
    log_every: int = 100
    save_every: int = 500

    def __post_init__(self) -> None:
        if min(self.steps, self.batch, self.log_every, self.save_every) < 1 or not 0 < self.lr < math.inf:
            raise ValueError(f'steps, batch, log_every, save_every and lr must be above 0, got {self}')


@dataclass(frozen=True)
class Report:
    """Measures over held-out maps."""

    maps: int
    error_mm: float  # mean absolute error
    raised_mm: float  # the same over pixels that are nearer than their surroundings: mostly arm and objects
    used: int  # codes that occur
    steps: int
    seconds: float  # of training


def read_maps(datasets: Sequence[Path], camera: str) -> tuple[Tensor, Tensor]:
    """Return maps (n, DEPTH_SIDE, DEPTH_SIDE) float32 [m] for training, and held-out ones.

    Held-out episodes are spread evenly. Raises ValueError for a data set without depth maps of the camera, or for too
    few episodes.
    """
    episodes: list[np.ndarray] = []
    for folder in datasets:
        data = Dataset(folder)
        if depth(camera) not in data.features:
            raise ValueError(f'{folder} has no {depth(camera)}: collect it with ./vla train collect --depth')
        episodes += [np.asarray(data.episode(i).columns[depth(camera)])[::EVERY] for i in range(len(data.episodes))]
    every = round(1 / HELD)
    if len(episodes) < 2:
        raise ValueError(f'{len(episodes)} episode is too few: some are held out, collect more')
    held = {i for i in range(len(episodes)) if i % every == every - 1} or {len(episodes) - 1}
    parts = ([e for i, e in enumerate(episodes) if i not in held], [episodes[i] for i in sorted(held)])
    train, rest = (
        torch.from_numpy(np.concatenate(part).astype(np.float32) / 1000).view(-1, DEPTH_SIDE, DEPTH_SIDE)
        for part in parts
    )
    return train, rest


def raised(metres: Tensor) -> Tensor:
    """Return which pixels of depth maps (B, side, side) [m] are nearer than their surroundings, same shape, bool."""
    pad = min(AROUND // 2, metres.shape[-1] - 1)
    padded = F.pad(metres[:, None], (pad,) * 4, mode='replicate')
    return metres < F.avg_pool2d(padded, 2 * pad + 1, 1)[:, 0] - SURFACE


class DepthTrainer(TrainingLoop):
    """One run of the depth tokenizer in one folder."""

    columns, label, rate = COLUMNS, 'depth tokenizer', 'maps_per_s'

    def __init__(self, maps: Tensor, held: Tensor, out: Path, config: DepthTokenizerConfig, settings: Settings) -> None:
        """Continue from `out/state`, if there is one. Raises ValueError for a run with other settings."""
        super().__init__(settings, out)
        self.settings, self.maps, self.held = settings, maps, held
        torch.manual_seed(settings.seed)
        self.tokenizer = DepthTokenizer(config)
        self.tokenizer.table.requires_grad_(False)  # moving averages of what is encoded, see _move
        weights = [p for p in self.tokenizer.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(weights, lr=settings.lr)
        self._sums, self._sizes = self.tokenizer.table.detach().clone(), torch.ones(config.codes)
        self._used = torch.zeros(config.codes)
        self._record: dict[str, Any] = {'settings': asdict(settings), 'config': asdict(config), 'maps': len(maps)}
        out.mkdir(parents=True, exist_ok=True)
        if (out / '.state-old').exists() and not (out / 'state').exists():  # a save was cut off between its renames
            (out / '.state-old').rename(out / 'state')
        if (out / 'state').is_dir():
            self._restore()

    def train_step(self) -> dict[str, float]:
        s, tokenizer = self.settings, self.tokenizer
        for group in self.optimizer.param_groups:
            group['lr'] = self.lr(self.step)
        generator = torch.Generator().manual_seed((s.seed << 32) + self.step)
        x = tokenizer.prepare(self.maps[torch.randint(len(self.maps), (s.batch,), generator=generator)])
        z = tokenizer.encoder(x)
        rows = z.detach().movedim(1, -1).flatten(0, -2)
        if self.step % RESTART == 0 and self.step < 0.7 * s.steps:
            self._restart(rows, generator)
        codes = tokenizer.nearest(z)
        q = F.embedding(codes, tokenizer.table).movedim(-1, 1)
        weight = 1 + (RAISED - 1) * raised(tokenizer.metres(x))[:, None]
        loss = ((tokenizer.decoder(z + (q - z).detach()) - x).square() * weight).mean()
        commitment = F.mse_loss(z, q)
        self.optimizer.zero_grad(set_to_none=True)
        (loss + COMMITMENT * 0.1 * commitment).backward()
        self.optimizer.step()
        self._move(rows, codes.flatten())
        return {'loss': float(loss.detach()), 'commitment': float(commitment.detach())}

    def _restart(self, rows: Tensor, generator: torch.Generator) -> None:
        """Give codes that were not used since the last call random rows of what is encoded now."""
        dead = self._used < 1
        self.tokenizer.table[dead] = rows[torch.randint(len(rows), (int(dead.sum()),), generator=generator)]
        self._sums[dead], self._sizes[dead] = self.tokenizer.table[dead], 1.0
        self._used.zero_()

    def _move(self, rows: Tensor, codes: Tensor) -> None:
        """Move the codes to the averages of the rows (n, width) that they stand for."""
        one = F.one_hot(codes, len(self._sizes)).float()
        self._used += one.sum(0)
        self._sizes.lerp_(one.sum(0), 1 - DECAY)
        self._sums.lerp_(one.T @ rows, 1 - DECAY)
        self.tokenizer.table.copy_(self._sums / self._sizes[:, None].clamp(min=1e-3))

    def complete(self, row: dict[str, float]) -> None:
        found = self.measure(256)
        row |= {'error_mm': found.error_mm, 'raised_mm': found.raised_mm, 'used': found.used}

    def describe(self, row: dict[str, float]) -> str:
        return f'loss {row["loss"]:.4f}, error {row["error_mm"]:.0f} mm, {row["used"]:.0f} codes'

    @torch.inference_mode()
    def measure(self, most: int = 4096) -> Report:
        """Return the measures over at most `most` held-out maps."""
        tokenizer = self.tokenizer
        maps = self.held[:: max(1, len(self.held) // most)][:most]
        codes = tokenizer.encode(maps)
        wanted = tokenizer.metres(tokenizer.prepare(maps))
        error = (tokenizer.decode(codes) - wanted).abs() * 1000
        some = raised(wanted)
        mean = float(error[some].mean()) if some.any() else math.nan
        return Report(len(maps), float(error.mean()), mean, len(codes.unique()), self.step, self.seconds)

    def save(self) -> Path:
        """Write the tokenizer and `state`."""
        file = self.out / FILE
        save_depth_tokenizer(self.tokenizer, file.with_suffix('.new'))
        file.with_suffix('.new').replace(file)
        new = self.out / '.state-new'
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        write_pieces(new, self._state().items())
        record = self._record | {'step': self.step, 'seconds': self.seconds}
        (new / 'training.json').write_text(json.dumps(record, indent=2) + '\n')
        state, old = self.out / 'state', self.out / '.state-old'
        shutil.rmtree(old, ignore_errors=True)
        if state.exists():
            state.rename(old)
        new.rename(state)
        shutil.rmtree(old, ignore_errors=True)
        return state

    def _state(self) -> dict[str, Tensor]:
        state = {f'weight.{n}': p.detach() for n, p in self.tokenizer.named_parameters()}
        state |= {'sums': self._sums, 'sizes': self._sizes, 'used': self._used}
        for name, p in self.tokenizer.named_parameters():
            state |= {f'optimizer.{key}.{name}': value for key, value in self.optimizer.state.get(p, {}).items()}
        return state

    @torch.no_grad()
    def _restore(self) -> None:
        folder = self.out / 'state'
        then = read_json(folder / 'training.json')
        now = {**self._record, 'settings': {**self._record['settings'], **dict.fromkeys(MAY_CHANGE)}}
        then['settings'] |= dict.fromkeys(MAY_CHANGE)
        if changed := [k for k, value in now.items() if then.get(k) != value]:
            raise ValueError(f'{folder} was trained with other {", ".join(changed)}: give another folder, or remove it')
        state = read_pieces(folder)
        for name, p in self.tokenizer.named_parameters():
            p.copy_(state[f'weight.{name}'])
            keys = [k for k in state if k.startswith('optimizer.') and k.endswith(f'.{name}')]
            if keys:
                self.optimizer.state[p] = {k.split('.')[1]: state[k] for k in keys}
        self._sums, self._sizes, self._used = state['sums'], state['sizes'], state['used']
        self.step, self.seconds = then['step'], then['seconds']

    @torch.inference_mode()
    def draw(self, count: int = 4) -> Path:
        """Write depth.png: held-out maps above their reconstructions, near is bright."""
        tokenizer, c = self.tokenizer, self.tokenizer.config
        maps = self.held[:: max(1, len(self.held) // count)][:count]
        both = torch.stack((tokenizer.metres(tokenizer.prepare(maps)), tokenizer.decode(tokenizer.encode(maps))))
        grey = ((c.far - both) / (c.far - c.near) * 255).clamp(0, 255).byte()
        page = grey.permute(0, 2, 1, 3).flatten(2).flatten(0, 1).numpy()
        path = self.out / 'depth.png'
        Image.fromarray(page).resize((page.shape[1] * 3, page.shape[0] * 3), Image.Resampling.NEAREST).save(path)
        return path


def train_depth_tokenizer(
    datasets: Sequence[Path], out: Path, *, camera: str = 'front', settings: Settings = Settings(),
    config: DepthTokenizerConfig = SIMULATED, minutes: float = math.inf,
) -> Report:  # fmt: skip
    """Train on the depth maps of a camera, or continue. Write the tokenizer, depth.png and report.json into `out`.

    minutes: stop and save after this time.
    """
    maps, held = read_maps(datasets, camera)
    trainer = DepthTrainer(maps, held, out, config, settings)
    trainer.run(time.monotonic() + 60 * minutes)
    load_depth_tokenizer(out)  # what is written can be read
    trainer.draw()
    report = trainer.measure()
    (out / 'report.json').write_text(json.dumps(asdict(report), indent=2) + '\n')
    return report
