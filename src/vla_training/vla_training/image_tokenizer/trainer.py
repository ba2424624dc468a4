"""Trains the image tokenizer of small models: LFQ codes of camera frames, and pictures from them.

What a step sees follows from the seed and the number of the step alone, so a run that was cut goes on as if it had not
been. In the folder of a run: image_tokenizer.safetensors and config.json, which are the result; report.json, log.csv,
loss.png, pictures.png; and state/, from which it goes on, in files of at most 15 MB.
"""

import csv
import json
import math
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import save_file
from torch import Tensor

from vla_model.checkpoints import checkpoint
from vla_model.checkpoints.nano import init_weights
from vla_model.config import ImageTokenizerConfig, read, read_json
from vla_model.image_tokenizer import ImageTokenizer
from vla_training.data.pieces import read_pieces, write_pieces
from vla_training.image_tokenizer.frames import FrameSet
from vla_training.image_tokenizer.losses import Foreground, ImageLosses, code_losses, reconstruction_loss, signs
from vla_training.image_tokenizer.metrics import CodeUsage, psnr, ssim
from vla_training.image_tokenizer.pointing import Pointer, pointing_loss
from vla_training.plot import plot_log

COLUMNS = ('step', 'seconds', 'lr', 'images_per_s', 'loss', 'commitment', 'entropy', 'psnr', 'points', 'off')
PANELS = {
    'loss': ('loss', 'commitment', 'entropy', 'points'),
    'PSNR [dB]': ('psnr',),
    'off [shares of the edge]': ('off',),
}
_MAY_CHANGE = ('steps', 'log_every', 'save_every', 'amp')  # more steps: the cosine begins anew where it would be


@dataclass(frozen=True)
class Settings:
    """All that decides a run beside the frames and the shape of the tokenizer."""

    steps: int = 20_000
    batch: int = 32
    lr: float = 1e-3
    min_lr: float = 0.02  # share of lr at the end of the cosine
    warmup: int = 200  # steps
    weight_decay: float = 0.01
    beta2: float = 0.99
    grad_clip: float = 1.0
    ema: float = 0.999
    shift: int = 8  # [px] that pictures are moved at most, their edges repeated
    gain: float = 0.1  # colours are multiplied by at most 1 +- so much, each channel by its own
    seed: int = 0
    amp: bool = True  # bf16 autocast
    log_every: int = 50
    save_every: int = 1000
    losses: ImageLosses = field(default_factory=ImageLosses)

    def __post_init__(self) -> None:
        for name in ('steps', 'batch', 'log_every', 'save_every'):
            if getattr(self, name) < 1:
                raise ValueError(f'{name} must be 1 or more, got {getattr(self, name)}')
        if not 0 < self.lr < math.inf or not 0 <= self.ema < 1 or not 0 <= self.gain < 1 or self.shift < 0:
            raise ValueError(f'lr must be above 0, ema and gain 0 or more and below 1, shift not below 0: {self}')


@dataclass(frozen=True)
class Report:
    """Of held-out frames, with the averaged weights in float32."""

    frames: int
    psnr: float  # [dB]
    foreground_psnr: float  # [dB] of the pixels that count most: objects and what is about them
    ssim: float
    codes: CodeUsage
    certain: float  # share of bits whose |z| is above 0.1: the others may flip with the precision
    off: (
        float | None
    )  # [shares of the picture's edge] mean error of pointing at things; None: nobody said where they are
    steps: int
    seconds: float  # of training


def train_image_tokenizer(
    frames: Path,
    out: Path,
    *,
    config: ImageTokenizerConfig,
    steps: int = 20_000,
    batch: int = 32,
    lr: float = 1e-3,
    seed: int = 0,
    device: str = 'cpu',
    init: Path | None = None,
    resume: bool = True,
    minutes: float = math.inf,
    settings: Settings | None = None,
) -> Report:
    """Trains on the frames of a folder, see frames.py, and writes the tokenizer and what was measured to `out`.

    init: folder of a tokenizer to begin with. resume: go on from `out/state` where there is one. minutes: stop and save
    after that. settings: all others, of which steps, batch, lr and seed are replaced. Raises ValueError where frames,
    config and what was trained do not fit.
    """
    chosen = Settings(**{**vars(settings or Settings()), 'steps': steps, 'batch': batch, 'lr': lr, 'seed': seed})
    trainer = ImageTokenizerTrainer(FrameSet.load(frames), out, config, chosen, device, resume, init)
    trainer.run(time.monotonic() + 60 * minutes)
    return trainer.finish()


def load_image_tokenizer(folder: Path, device: str | torch.device = 'cpu') -> ImageTokenizer:
    """What a run left in its folder. Raises FileNotFoundError or ValueError naming the file and the remedy."""
    content = read_json(folder / 'config.json')
    try:
        config = read(ImageTokenizerConfig, content, '')
    except ValueError as error:
        raise ValueError(f'{folder / "config.json"}: {error}') from None
    with torch.device('meta'):
        tokenizer = ImageTokenizer(config)
    path = folder / checkpoint.IMAGE_FILE
    if not path.is_file():
        raise FileNotFoundError(f'{path} is missing: train the image tokenizer first')
    _, stored = checkpoint.split(checkpoint.list_tensors(folder))
    checkpoint.load_into(tokenizer, stored, torch.device(device), torch.float32, folder)
    return tokenizer.eval()


class ImageTokenizerTrainer:
    """One run in one folder."""

    def __init__(
        self,
        frames: FrameSet,
        out: Path,
        config: ImageTokenizerConfig,
        settings: Settings,
        device: str = 'cpu',
        resume: bool = True,
        init: Path | None = None,
    ) -> None:
        if frames.resolution != config.resolution:
            raise ValueError(
                f'frames are {frames.resolution} px, the tokenizer takes {config.resolution}: collect frames for it'
            )
        self.config, self.settings, self.out = config, settings, out
        self.device = torch.device(device)
        self.train_rows, self.held_rows = frames.split()
        self.foreground = Foreground(frames, self.train_rows, settings.losses, self.device)
        self.images, self.camera = frames.images.to(self.device), frames.camera.to(self.device)
        self.weight = None if frames.weight is None else frames.weight.to(self.device)
        model = ImageTokenizer(config)
        if init is None:
            init_weights(model, settings.seed)
        else:
            begun = load_image_tokenizer(init)
            if begun.config != config:
                raise ValueError(f'{init} is a tokenizer of another shape: begin with one of the same shape')
            model.load_state_dict(begun.state_dict())
        self.model = model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = {n: p.detach().clone() for n, p in self.model.named_parameters()}
        self.parameters = dict(self.model.named_parameters())
        self.names, self.points, self.pointer = frames.names, None, None
        matrices: list[torch.nn.Parameter] = []
        if frames.points is not None and settings.losses.points:
            self.points = frames.points.to(self.device)
            pointer = Pointer(len(frames.names), config.z_channels, config.tokens)
            self.pointer = pointer.to(self.device)
            self.parameters |= {f'pointer.{n}': p for n, p in pointer.named_parameters()}
            matrices = pointer.matrices()
        ids = {id(p) for p in matrices}
        others = [p for p in self.parameters.values() if id(p) not in ids]
        lr, decay = settings.lr, settings.weight_decay
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(others, lr=lr, betas=(0.9, settings.beta2), weight_decay=decay, fused=True)
        ]
        if matrices:
            muon = torch.optim.Muon(matrices, lr=lr, weight_decay=decay, adjust_lr_fn='match_rms_adamw')
            self.optimizers.append(muon)
        self.step, self.seconds = 0, 0.0
        out.mkdir(parents=True, exist_ok=True)
        state, old = out / 'state', out / '.state-old'
        if old.exists() and not state.exists():  # it was cut off between the two renames of `save`
            old.rename(state)
        if resume and state.exists():
            self._restore(state)
        else:
            (out / 'log.csv').unlink(missing_ok=True)

    def lr(self, step: int) -> float:
        """Linear warm-up, then a cosine down to min_lr."""
        s = self.settings
        if step < s.warmup:
            return s.lr * (step + 1) / s.warmup
        done = (step - s.warmup) / max(1, s.steps - s.warmup)
        return s.lr * (s.min_lr + (1 - s.min_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))

    # ---- steps

    def run(self, until: float = math.inf) -> int:
        """Trains to the last step, or until time.monotonic() passes `until`. Saves, and returns the step."""
        s = self.settings
        columns = (TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, refresh_per_second=1) as bar:
            line = bar.add_task('image tokenizer', total=s.steps, completed=self.step)
            sums: dict[str, Tensor] = {}
            began, since = time.monotonic(), self.step
            while self.step < s.steps and time.monotonic() < until:
                for name, value in self.train_step().items():
                    sums[name] = sums.get(name, 0) + value
                self.step += 1
                bar.update(line, completed=self.step)
                if self.step % s.log_every == 0 or self.step == s.steps:
                    row = {name: float(value) / (self.step - since) for name, value in sums.items()}
                    if not math.isfinite(row['loss']):
                        raise ValueError(
                            f'the loss before step {self.step} is not finite: lower lr, or train without amp'
                        )
                    took = time.monotonic() - began
                    self.seconds += took
                    row |= {'step': self.step, 'seconds': self.seconds, 'lr': self.lr(self.step - 1)}
                    row['images_per_s'] = (self.step - since) * s.batch / took
                    self._log(row)
                    bar.update(line, description=f'PSNR {row["psnr"]:.1f} dB, {row["images_per_s"]:.0f} images/s')
                    sums, began, since = {}, time.monotonic(), self.step
                if self.step % s.save_every == 0:
                    self.save()
        self.save()
        return self.step

    def train_step(self) -> dict[str, Tensor]:
        """One step of the optimizer. Returns losses and PSNR [dB], detached."""
        s = self.settings
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group['lr'] = self.lr(self.step)
        real, weight, places = self._batch()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=s.amp):
            z = self.model.encoder(real)
            codes = signs(z)
            made = self.model.decoder(codes)
            pointed = self.pointer(codes) if self.pointer is not None else None
        commitment, entropy = code_losses(z, s.losses)
        loss = reconstruction_loss(made, real, weight, s.losses)
        total = loss + s.losses.commitment * commitment + s.losses.entropy * entropy
        found = {'loss': loss, 'commitment': commitment, 'entropy': entropy}
        if pointed is not None and places is not None:
            found['points'], found['off'] = pointing_loss(pointed, places)
            total = total + s.losses.points * found['points']
        total.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), s.grad_clip)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        decay = min(s.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.values()), [self.parameters[n] for n in self.average], 1 - decay)
            found['psnr'] = psnr((made.float().clamp(-1, 1) + 1) / 2, (real + 1) / 2).mean()
        return {name: value.detach() for name, value in found.items()}

    def _batch(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """(images (B, 3, R, R) in [-1, 1], weights (B, 1, R, R), places of things) of this step, moved and tinted."""
        s = self.settings
        generator = torch.Generator().manual_seed((s.seed << 32) + self.step)
        rows = self.train_rows[torch.randint(len(self.train_rows), (s.batch,), generator=generator)]
        shifts = torch.randint(0, 2 * s.shift + 1, (s.batch, 2), generator=generator).tolist()
        gain = 1 + s.gain * (2 * torch.rand(s.batch, 3, 1, 1, generator=generator) - 1)
        images, weight = self._pictures(rows.to(self.device))
        both = F.pad(torch.cat([images.float() / 255, weight], 1), (s.shift,) * 4, mode='replicate')
        side = self.config.resolution
        both = torch.stack([x[:, i : i + side, j : j + side] for x, (i, j) in zip(both, shifts, strict=True)])
        pixels = (both[:, :3] * gain.to(self.device)).clamp(max=1) * 2 - 1
        moved = torch.tensor([(s.shift - j, s.shift - i) for i, j in shifts], dtype=torch.float32, device=self.device)
        places = self._places(rows.to(self.device), moved)
        return pixels.contiguous(memory_format=torch.channels_last), both[:, 3:], places

    def _places(self, rows: Tensor, moved: Tensor | float = 0.0) -> Tensor | None:
        """(B, names, 2) in [-1, 1] of rows (B,) that were moved by (B, 2) [px]; None where nobody said."""
        if self.points is None:
            return None
        at = self.points[rows] + (moved[:, None] if isinstance(moved, Tensor) else moved)
        return 2 * (at + 0.5) / self.config.resolution - 1

    def _pictures(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(images (B, 3, R, R) uint8, weights (B, 1, R, R)) of rows (B,)."""
        images = self.images[rows]
        given = None if self.weight is None else self.weight[rows]
        return images, self.foreground.weight(images, self.camera[rows], given)

    def _log(self, row: dict[str, float]) -> None:
        path = self.out / 'log.csv'
        new = not path.exists()
        with path.open('a', newline='') as file:
            writer = csv.DictWriter(file, COLUMNS, restval='')
            if new:
                writer.writeheader()
            writer.writerow({k: f'{v:.6g}' for k, v in row.items()})

    def _optimizer(self, p: torch.nn.Parameter) -> torch.optim.Optimizer:
        return next(o for o in self.optimizers if any(p is q for group in o.param_groups for q in group['params']))

    # ---- what a run leaves

    def averaged(self) -> ImageTokenizer:
        """The tokenizer with the averaged weights."""
        model = ImageTokenizer(self.config).to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        model.load_state_dict(self.model.state_dict() | self.average)
        return model.eval()

    def finish(self) -> Report:
        """Writes the tokenizer and all that shows how good it is."""
        model = self.averaged()
        plain = {n: t.detach().cpu().contiguous() for n, t in model.state_dict().items()}
        temporary = self.out / '.writing'
        save_file(plain, temporary)
        temporary.replace(self.out / checkpoint.IMAGE_FILE)
        (self.out / 'config.json').write_text(json.dumps(asdict(self.config), indent=2) + '\n')
        report = self.evaluate(model)
        (self.out / 'report.json').write_text(json.dumps(asdict(report), indent=2) + '\n')
        self._sheet(model)
        if (self.out / 'log.csv').exists():
            plot_log(self.out / 'log.csv', self.out / 'loss.png', PANELS)
        return report

    @torch.inference_mode()
    def evaluate(self, model: ImageTokenizer, batch: int = 64) -> Report:
        """Over all held-out frames."""
        sums: dict[str, list[Tensor]] = {'psnr': [], 'ssim': [], 'error': [], 'count': [], 'certain': [], 'off': []}
        codes = []
        for rows in self.held_rows.to(self.device).split(batch):
            images, weight = self._pictures(rows)
            real = images.float() / 255
            z = model.encoder((real * 2 - 1).contiguous(memory_format=torch.channels_last))
            codes.append(model.quantize(z).cpu())
            made = (model.decode(codes[-1].to(self.device)).clamp(-1, 1) + 1) / 2
            counts = (weight > 1 + self.settings.losses.rare / 4).float()
            sums['psnr'].append(psnr(made, real))
            sums['ssim'].append(ssim(made, real))
            sums['error'].append(((made - real).square().mean(1, keepdim=True) * counts).sum()[None])
            sums['count'].append(counts.sum()[None])
            sums['certain'].append((z.abs() > 0.1).float().mean((1, 2, 3)))
            if self.pointer is not None and (places := self._places(rows)) is not None:
                sums['off'].append(pointing_loss(self.pointer(signs(z)), places)[1][None])
        found = {name: torch.cat(values) for name, values in sums.items() if values}
        error = float(found['error'].sum() / found['count'].sum().clamp(min=1))
        return Report(
            frames=len(self.held_rows),
            psnr=float(found['psnr'].mean()),
            foreground_psnr=-10 * math.log10(max(error, 1e-10)),
            ssim=float(found['ssim'].mean()),
            codes=CodeUsage.of(torch.cat(codes), self.config.z_channels),
            certain=float(found['certain'].mean()),
            off=float(found['off'].mean()) if 'off' in found else None,
            steps=self.step,
            seconds=self.seconds,
        )

    @torch.inference_mode()
    def _sheet(self, model: ImageTokenizer, pictures: int = 24, across: int = 6) -> None:
        """pictures.png: held-out frames, below each what its codes give."""
        rows = self.held_rows[torch.linspace(0, len(self.held_rows) - 1, pictures).round().long().unique()]
        real = self.images[rows.to(self.device)].float() / 127.5 - 1
        made = model.decode(model.encode(real)).clamp(-1, 1)
        pairs = ((torch.cat([real, made], 2) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        pairs = pairs[: len(pairs) // across * across] if len(pairs) >= across else pairs
        lines = [np.concatenate(list(pairs[i : i + across]), 1) for i in range(0, len(pairs), across)]
        Image.fromarray(np.concatenate(lines)).save(self.out / 'pictures.png')

    def save(self) -> None:
        """Writes `state`; a write that is cut off leaves the one before."""
        folder, new, old = (self.out / name for name in ('state', '.state-new', '.state-old'))
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        state = {f'weight.{n}': p.detach() for n, p in self.parameters.items()}
        state |= {f'average.{n}': value for n, value in self.average.items()}
        for name, p in self.parameters.items():
            state |= {f'optimizer.{key}.{name}': value for key, value in self._optimizer(p).state[p].items()}
        write_pieces(new, state.items())
        (new / 'training.json').write_text(json.dumps(self._record(), indent=2) + '\n')
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
        shutil.rmtree(old, ignore_errors=True)

    def _record(self) -> dict[str, Any]:
        return {
            'step': self.step,
            'seconds': self.seconds,
            'frames': len(self.images),
            'names': list(self.names),
            'settings': asdict(self.settings),
            'config': json.loads(json.dumps(asdict(self.config))),
        }

    def _restore(self, folder: Path) -> None:
        then, now = read_json(folder / 'training.json'), self._record()
        before, after = (r['settings'] | {k: r.get(k) for k in ('config', 'frames', 'names')} for r in (then, now))
        if changed := [k for k in after if k not in _MAY_CHANGE and before.get(k) != after[k]]:
            raise ValueError(
                f'{folder} was trained with other {", ".join(changed)}: give another folder, the same settings, '
                'or resume=False'
            )
        state = read_pieces(folder)
        for name, p in self.parameters.items():
            optimizer = self._optimizer(p)
            moments = ('exp_avg', 'exp_avg_sq') if isinstance(optimizer, torch.optim.AdamW) else ('momentum_buffer',)
            steps = ('step',) if isinstance(optimizer, torch.optim.AdamW) else ()
            keys = {k: f'{k}.{name}' for k in ('weight', *(('average',) if name in self.average else ()))}
            keys |= {k: f'optimizer.{k}.{name}' for k in (*steps, *moments)}
            if missing := [key for key in keys.values() if key not in state]:
                raise ValueError(f'{folder} lacks {missing[0]}: a file of it is missing, copy it again')
            with torch.no_grad():
                p.copy_(state[keys['weight']])
            if name in self.average:
                self.average[name].copy_(state[keys['average']])
            # On a CPU, too, the optimizer keeps its moments as it keeps the weights: channels last.
            optimizer.state[p] = {k: state[keys[k]].to(self.device) for k in steps} | {
                k: torch.empty_like(p).copy_(state[keys[k]]) for k in moments
            }
        self.step, self.seconds = then['step'], then['seconds']
