"""Stores camera frames for the training of the image tokenizer, as JPEG in safetensors files of at most 15 MB.

`FrameWriter` writes the files and `FrameSet` reads them. Tensors of a file with N frames:

    jpeg      (bytes,) uint8   all frames, one after the other
    ends      (N,) int64       end of each frame in jpeg
    camera    (N,) uint8       row of `cameras`
    episode   (N,) int32       number of the episode, so that whole episodes can be held out
    points    (N, names, 2) float32  optional: grounding points x and y [px], NaN: the object is not in the scene
    weight    (bytes,) uint8   optional, PNG: weight of each pixel
    weight_ends (N,) int64     end of each map in weight
"""

import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vla_model.image_tokenizer import preprocess
from vla_model.observation import squared
from vla_training.data.shards import MAX_BYTES

QUALITY = 92  # of JPEG, colour at full resolution: about 5 kB per frame of 128 px
HELD_OUT = 20  # one in so many episodes is held out
_HEAD = 200_000  # [byte] of a file for all tensors but images


class FrameWriter:
    """Preprocesses, compresses and writes frames. Use it as a context manager, or call `close`."""

    def __init__(self, folder: Path, resolution: int, cameras: tuple[str, ...], max_bytes: int = MAX_BYTES) -> None:
        """Open a folder. resolution: of the image tokenizer [px]. Raises ValueError if the folder has frames."""
        if any(folder.glob('frames-*.safetensors')):
            raise ValueError(f'{folder} holds frames already: give another folder, or remove it')
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.resolution, self.cameras = folder, resolution, cameras
        self.frames = 0  # number of frames added
        self._limit = max_bytes - _HEAD
        self._files = 0
        self._weighted = False
        self._clear()

    def add(
        self,
        image: np.ndarray,
        camera: str,
        episode: int,
        weight: np.ndarray | None = None,
        points: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        """Add a frame.

        image: (height, width, 3) uint8 RGB of the camera. weight: (resolution, resolution) uint8. points: object name
        -> x and y [px] in the image. Raises ValueError naming the fault of the frame.
        """
        if camera not in self.cameras:
            raise ValueError(f'camera {camera!r} is none of {list(self.cameras)}')
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f'frame of {camera}: expected (height, width, 3) uint8, got {image.shape} {image.dtype}')
        side = (self.resolution, self.resolution)
        if weight is not None and (weight.dtype != np.uint8 or weight.shape != side):
            raise ValueError(f'weight of a frame must be {side} uint8, got {weight.shape} {weight.dtype}')
        if self.frames and self._weighted != (weight is not None):
            raise ValueError('either every frame has a weight map, or none has')
        self._weighted = weight is not None
        # NumPy from here on: torch's threads of many collecting processes wait for each other.
        pixels = preprocess(image, self.resolution).numpy().transpose(1, 2, 0)
        blobs = [_compress(np.clip((pixels + 1) * 127.5, 0, 255).round().astype(np.uint8), 'JPEG')]
        if weight is not None:
            blobs.append(_compress(weight, 'PNG'))
        if self._size + sum(map(len, blobs)) + 32 > self._limit:
            self._flush()
        self._blobs.append(blobs)
        self._size += sum(map(len, blobs)) + 32
        self._camera.append(self.cameras.index(camera))
        self._episode.append(episode)
        self._points.append({name: self._place(at, image) for name, at in (points or {}).items()})
        self.frames += 1

    def _place(self, at: Sequence[float], image: np.ndarray) -> tuple[float, float]:
        """Return a pixel of the image in the preprocessed image, which bars make square."""
        return tuple(squared(np.asarray(at), *image.shape[:2]) * self.resolution - 0.5)

    def close(self) -> None:
        if self._blobs:
            self._flush()

    def __enter__(self) -> 'FrameWriter':
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _clear(self) -> None:
        self._blobs: list[list[bytes]] = []
        self._camera: list[int] = []
        self._episode: list[int] = []
        self._points: list[dict[str, tuple[float, float]]] = []
        self._size = 0

    def _flush(self) -> None:
        tensors = {'camera': torch.tensor(self._camera, dtype=torch.uint8)}
        tensors['episode'] = torch.tensor(self._episode, dtype=torch.int32)
        for i, (name, ends) in enumerate((('jpeg', 'ends'), ('weight', 'weight_ends'))[: len(self._blobs[0])]):
            parts = [blobs[i] for blobs in self._blobs]
            tensors[name] = torch.frombuffer(bytearray(b''.join(parts)), dtype=torch.uint8)
            tensors[ends] = torch.tensor([len(p) for p in parts]).cumsum(0)
        names = sorted({name for points in self._points for name in points})
        if names:
            nowhere = (math.nan, math.nan)
            places = [[points.get(name, nowhere) for name in names] for points in self._points]
            tensors['points'] = torch.tensor(places, dtype=torch.float32)
        facts = {'resolution': str(self.resolution), 'cameras': json.dumps(self.cameras), 'names': json.dumps(names)}
        path = self.folder / f'frames-{self._files:05d}.safetensors'
        save_file(tensors, path.with_suffix('.writing'), facts)
        path.with_suffix('.writing').replace(path)
        self._files += 1
        self._clear()


@dataclass(frozen=True)
class FrameSet:
    """Frames in memory: 49 kB each at 128 px."""

    images: Tensor  # (N, 3, R, R) uint8
    camera: Tensor  # (N,) int64, row of `cameras`
    episode: Tensor  # (N,) int64
    cameras: tuple[str, ...]
    weight: Tensor | None = None  # (N, R, R) uint8, 0: counts once, 255: most
    names: tuple[str, ...] = ()  # of objects
    points: Tensor | None = None  # (N, names, 2) float32 [px], x then y; NaN: the object is not in the scene

    def __len__(self) -> int:
        return len(self.images)

    @property
    def resolution(self) -> int:
        return self.images.shape[-1]

    def split(self) -> tuple[Tensor, Tensor]:
        """Return (training rows, held-out rows). Every 20th episode is held out, from the last one back."""
        episodes = self.episode.unique()
        if len(episodes) < 2:
            raise ValueError('the frames are of one episode: at least two are needed, one to train on, one to hold out')
        held = torch.isin(self.episode, episodes.flip(0)[::HELD_OUT])
        return (~held).nonzero()[:, 0], held.nonzero()[:, 0]

    @classmethod
    def load(cls, folder: Path) -> 'FrameSet':
        """Read all frames of a folder. Raises FileNotFoundError or ValueError naming the file and the fault."""
        paths = sorted(folder.glob('frames-*.safetensors'))
        if not paths:
            raise FileNotFoundError(f'{folder} has no frames-*.safetensors: collect frames first')
        parts = [_read(path) for path in paths]
        for path, part in zip(paths, parts, strict=True):
            same = part.cameras == parts[0].cameras and part.resolution == parts[0].resolution
            if not same or (part.weight is None) != (parts[0].weight is None):
                raise ValueError(f'{path} is of another set than {paths[0].name}: keep one set per folder')
        weights = [part.weight for part in parts if part.weight is not None]
        names = tuple(sorted({name for part in parts for name in part.names}))
        return cls(
            torch.cat([p.images for p in parts]),
            torch.cat([p.camera for p in parts]),
            torch.cat([p.episode for p in parts]),
            parts[0].cameras,
            torch.cat(weights) if weights else None,
            names,
            torch.cat([_spread(part, names) for part in parts]) if names else None,
        )


def _read(path: Path) -> FrameSet:
    try:
        with safe_open(path, framework='pt') as file:
            facts = file.metadata()
            t = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (the file is no mapping)
        side, cameras = int(facts['resolution']), tuple(json.loads(facts['cameras']))
        images = _decompress(t['jpeg'], t['ends'], (side, side, 3)).permute(0, 3, 1, 2).contiguous()
        weight = _decompress(t['weight'], t['weight_ends'], (side, side)) if 'weight' in t else None
        names = tuple(json.loads(facts.get('names', '[]')))
        right = 'points' not in t or t['points'].shape == (len(images), len(names), 2)
        if not (right and len(images) == len(t['camera']) == len(t['episode'])) or int(t['camera'].max()) >= len(
            cameras
        ):
            raise ValueError('its tensors do not belong together')
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise ValueError(f'{path} is damaged or holds no frames ({error}): collect the frames again') from None
    return FrameSet(images, t['camera'].long(), t['episode'].long(), cameras, weight, names, t.get('points'))


def _spread(part: FrameSet, names: tuple[str, ...]) -> Tensor:
    """Return the points (N, names, 2) of a part. Names that the part lacks have NaN."""
    points = torch.full((len(part), len(names), 2), math.nan)
    if part.points is not None:
        points[:, [names.index(name) for name in part.names]] = part.points
    return points


def _compress(pixels: np.ndarray, format: str) -> bytes:
    out = io.BytesIO()
    options = {'quality': QUALITY, 'subsampling': 0} if format == 'JPEG' else {}
    Image.fromarray(pixels).save(out, format, **options)  # type: ignore[arg-type]
    return out.getvalue()


def _decompress(blob: Tensor, ends: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return the decoded pictures (N, *shape) uint8."""
    data = blob.numpy().tobytes()
    out = np.empty((len(ends), *shape), np.uint8)
    start = 0
    for row, end in zip(out, ends.tolist(), strict=True):
        picture = np.asarray(Image.open(io.BytesIO(data[start:end])))
        if picture.shape != shape:
            raise ValueError(f'a picture is {picture.shape}, expected {shape}')
        row[:] = picture
        start = end
    return torch.from_numpy(out)
