"""Trains the image tokenizer of small models: LFQ codes of camera frames, and images from codes.

The data of a step depends on the seed and the number of the step alone, so an interrupted run continues with the same
numbers. The folder of a run has the result (image_tokenizer.safetensors, config.json), report.json, log.csv, loss.png,
pictures.png, and the state from which it continues (state/, in files of at most 15 MB).
"""

import json
import math
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from vla_model.checkpoints import checkpoint
from vla_model.checkpoints.nano import init_weights
from vla_model.config import ImageTokenizerConfig
from vla_model.image_tokenizer import ImageTokenizer
from vla_training.image_tokenizer.frames import FrameSet
from vla_training.image_tokenizer.grounding import GroundingReader, grounding_loss
from vla_training.image_tokenizer.losses import Foreground, ImageLosses, code_losses, reconstruction_loss, signs
from vla_training.image_tokenizer.metrics import CodeUsage, psnr, ssim
from vla_training.image_tokenizer.state import State, load_image_tokenizer
from vla_training.plot import plot_log
from vla_training.training_loop import LOG, TrainingLoop

COLUMNS = ('step', 'seconds', 'lr', 'images_per_s', 'loss', 'commitment', 'entropy', 'psnr', 'points', 'off')
PANELS = {
    'loss': ('loss', 'commitment', 'entropy', 'points'),
    'PSNR [dB]': ('psnr',),
    'grounding error [share of the edge]': ('off',),
}


@dataclass(frozen=True)
class Settings:
    """Settings of a run, beside the frames and the shape of the tokenizer."""

    steps: int = 20_000
    batch: int = 32
    lr: float = 1e-3
    min_lr: float = 0.02  # share of lr at the end of the cosine
    warmup: int = 200  # steps
    weight_decay: float = 0.01
    beta2: float = 0.99
    grad_clip: float = 1.0
    ema: float = 0.999
    shift: int = 8  # [px] largest random shift of an image; edges are repeated
    gain: float = 0.1  # largest random change of each colour channel, relative to 1
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
    """Measures over held-out frames, with the averaged weights in float32."""

    frames: int
    psnr: float  # [dB]
    foreground_psnr: float  # [dB] of the pixels with the largest weights: objects and their surroundings
    ssim: float
    codes: CodeUsage
    certain: float  # share of bits whose |z| is above 0.1; others may flip with the precision
    off: float | None  # mean error of the grounding points [share of the image's edge]; None: the frames have none
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
    """Train on the frames of a folder, see frames.py. Write the tokenizer and its report to `out`. Return the report.

    init: folder of the initial tokenizer. resume: continue from `out/state`, if there is one. minutes: stop and save
    after this time. settings: all others; its steps, batch, lr and seed are replaced. Raises ValueError where frames,
    config and an earlier run do not fit.
    """
    chosen = Settings(**{**vars(settings or Settings()), 'steps': steps, 'batch': batch, 'lr': lr, 'seed': seed})
    trainer = ImageTokenizerTrainer(FrameSet.load(frames), out, config, chosen, device, resume, init)
    trainer.run(time.monotonic() + 60 * minutes)
    return trainer.finish()


class ImageTokenizerTrainer(TrainingLoop):
    """One run of the image tokenizer in one folder."""

    columns, label, rate = COLUMNS, 'image tokenizer', 'images_per_s'

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
        super().__init__(settings, out)
        self.config, self.settings = config, settings
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
            pointer = GroundingReader(len(frames.names), config.z_channels, config.tokens)
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
        out.mkdir(parents=True, exist_ok=True)
        self._state = State(out, self.parameters, self.average, self.optimizers)
        if resume and self._state.folder.exists():
            then = self._state.restore(self._record(), self.device)
            self.step, self.seconds = then['step'], then['seconds']
        else:
            (out / LOG).unlink(missing_ok=True)

    # ---- steps

    def complete(self, row: dict[str, float]) -> None:
        if not math.isfinite(row['loss']):
            raise ValueError(f'the loss before step {self.step} is not finite: lower lr, or train without amp')

    def describe(self, row: dict[str, float]) -> str:
        return f'PSNR {row["psnr"]:.1f} dB, {row[self.rate]:.0f} images/s'

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
            found['points'], found['off'] = grounding_loss(pointed, places)
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
        """Return the augmented images (B, 3, R, R) in [-1, 1], weights (B, 1, R, R) and points of this step."""
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
        """Return the points (B, names, 2) in [-1, 1] of rows (B,) shifted by (B, 2) [px]; None: there are none."""
        if self.points is None:
            return None
        at = self.points[rows] + (moved[:, None] if isinstance(moved, Tensor) else moved)
        return 2 * (at + 0.5) / self.config.resolution - 1

    def _pictures(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return images (B, 3, R, R) uint8 and weights (B, 1, R, R) of rows (B,)."""
        images = self.images[rows]
        given = None if self.weight is None else self.weight[rows]
        return images, self.foreground.weight(images, self.camera[rows], given)

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
        if (self.out / LOG).exists():
            plot_log(self.out / LOG, self.out / 'loss.png', PANELS)
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
                sums['off'].append(grounding_loss(self.pointer(signs(z)), places)[1][None])
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
        """Write `state`; a write that is cut off leaves the one before."""
        self._state.save(self._record())

    def _record(self) -> dict[str, Any]:
        return {
            'step': self.step,
            'seconds': self.seconds,
            'frames': len(self.images),
            'names': list(self.names),
            'settings': asdict(self.settings),
            'config': json.loads(json.dumps(asdict(self.config))),
        }
