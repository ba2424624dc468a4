"""The depth tokenizer of this suite's models: metric depth maps to 10 x 10 codes of 128, and back.

A VQ-VAE as MolmoAct's (families/molmoact/depth.py), smaller, and of metric depth: a code means the same distance in
every image.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

FILE = 'depth_tokenizer.safetensors'
SCALE = 8  # pixels per code, along an edge


@dataclass(frozen=True)
class DepthTokenizerConfig:
    """Shape and range. The map is resized to a square of `side` pixels, a multiple of SCALE."""

    side: int = 80  # [px]
    codes: int = 128
    width: int = 32  # numbers of a code
    channels: int = 16  # of the first of three levels; each has twice those of the one before
    near: float = 0.2  # [m] depth is clipped to this range
    far: float = 2.0  # [m]

    def __post_init__(self) -> None:
        if self.side < SCALE or self.side % SCALE or min(self.codes, self.width, self.channels) < 1:
            raise ValueError(f'side must be a multiple of {SCALE}, and sizes above 0, got {self}')
        if not 0 < self.near < self.far:
            raise ValueError(f'near must be above 0 and below far, got {self.near} and {self.far}')

    @property
    def grid(self) -> int:
        """Codes along an edge."""
        return self.side // SCALE


class DepthTokenizer(nn.Module):
    """Depth along the optical axis [m] as codes, and back."""

    def __init__(self, config: DepthTokenizerConfig):
        super().__init__()
        self.config, c = config, config.channels
        self.encoder = nn.Sequential(
            nn.Conv2d(1, c, 4, 2, 1), nn.ReLU(),
            nn.Conv2d(c, 2 * c, 4, 2, 1), nn.ReLU(),
            nn.Conv2d(2 * c, 4 * c, 4, 2, 1), _Residual(4 * c), _Residual(4 * c),
            nn.Conv2d(4 * c, config.width, 1),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.Conv2d(config.width, 4 * c, 3, 1, 1), _Residual(4 * c), _Residual(4 * c), nn.ReLU(),
            nn.ConvTranspose2d(4 * c, 2 * c, 4, 2, 1), nn.ReLU(),
            nn.ConvTranspose2d(2 * c, c, 4, 2, 1), nn.ReLU(),
            nn.ConvTranspose2d(c, 1, 4, 2, 1),
        )  # fmt: skip
        self.table = nn.Parameter(torch.randn(config.codes, config.width) * 0.1)  # one row per code

    def prepare(self, depth: np.ndarray | Tensor) -> Tensor:
        """Return inputs (B, 1, side, side) in [-1, 1] of depth maps (B, height, width) [m].

        Codes depend on how a map was sampled: give maps of one size and one sampling.
        Depth that is not finite, or 0 and below, counts as far: such pixels are beyond a camera's range.
        """
        metres = torch.as_tensor(np.asarray(depth) if isinstance(depth, np.ndarray) else depth).float()
        c = self.config
        metres = torch.where(torch.isfinite(metres) & (metres > 0), metres, c.far).clamp(c.near, c.far)
        unit = (metres[:, None].to(self.table.device) - c.near) / (c.far - c.near) * 2 - 1
        return F.interpolate(unit, (c.side, c.side), mode='area' if metres.shape[-1] > c.side else 'nearest')

    @torch.inference_mode()
    def encode(self, depth: np.ndarray | Tensor) -> Tensor:
        """Return codes (B, grid * grid) int64, row by row, of depth maps (B, height, width) [m]."""
        return self.nearest(self.encoder(self.prepare(depth))).flatten(1)

    @torch.inference_mode()
    def decode(self, codes: Tensor) -> Tensor:
        """Return depth maps (B, side, side) float32 [m] of codes (B, grid * grid)."""
        grid = self.config.grid
        z = F.embedding(codes.view(-1, grid, grid).to(self.table.device), self.table).movedim(-1, 1)
        return self.metres(self.decoder(z).clamp(-1, 1))

    def metres(self, unit: Tensor) -> Tensor:
        """Return depth maps (B, side, side) [m] of inputs (B, 1, side, side) in [-1, 1]."""
        c = self.config
        return (unit[:, 0] + 1) / 2 * (c.far - c.near) + c.near

    def nearest(self, z: Tensor) -> Tensor:
        """Return the nearest codes (B, grid, grid) of encoded maps (B, width, grid, grid)."""
        rows = z.movedim(1, -1)
        return (self.table.square().sum(-1) - 2 * rows @ self.table.T).argmin(-1)


class _Residual(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.net = nn.Sequential(
            nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.net(x)


def save_depth_tokenizer(tokenizer: DepthTokenizer, path: Path) -> None:
    """Write the tokenizer with its configuration into a file."""
    tensors = {name: t.detach().cpu().contiguous() for name, t in tokenizer.state_dict().items()}
    settings = {name: str(value) for name, value in asdict(tokenizer.config).items()}
    save_file(tensors, path, settings)
    path.chmod(0o644)  # safetensors lets only the training user read it; on the robot another user reads it


def load_depth_tokenizer(folder: Path, device: torch.device | str = 'cpu') -> DepthTokenizer:
    """Load the tokenizer of a folder. Raises FileNotFoundError or ValueError naming the file and the fault."""
    path = folder / FILE
    if not path.is_file():
        raise FileNotFoundError(f'{path} is missing: train it with ./vla train depth, or copy the checkpoint again')
    try:
        with safe_open(path, framework='pt') as file:
            found = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (the file is no mapping)
        kinds = {f: type(value) for f, value in asdict(DepthTokenizerConfig()).items()}
        tokenizer = DepthTokenizer(DepthTokenizerConfig(**{name: kinds[name](value) for name, value in found.items()}))
        tokenizer.load_state_dict(tensors)
        if wrong := [name for name, t in tensors.items() if not torch.isfinite(t).all()]:
            raise ValueError(f'{wrong[0]} has numbers that are not finite')
    except (SafetensorError, OSError, KeyError, ValueError, RuntimeError) as error:
        raise ValueError(f'{path} is not a depth tokenizer ({error}): copy it again') from None
    return tokenizer.to(device).eval()
