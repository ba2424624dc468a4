"""Compares a policy's actions, plans and predicted images with recorded frames that it was not trained on."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from vla_model.image_tokenizer import ImageTokenizer, preprocess
from vla_model.policy import IMAGE, PLAN, POINTS, ImageOptions, PlanOptions, Policy, finish
from vla_model.tokens import bins
from vla_model.types import Observation
from vla_training.data.annotate import Plan, plans
from vla_training.data.annotate import plan_texts as texts_of
from vla_training.data.features import STATE, image
from vla_training.image_tokenizer.metrics import psnr, ssim
from vla_training.lerobot import Dataset, Episode
from vla_training.train.chunks import chunks_of, starts, stride
from vla_training.train.labels import grounding_points

NOT_TRAINED = 1_000_000  # first seed that is never trained on
_EXACT = 1000  # bins in which points are compared that a policy does not give in bins
CURRENT = 'continue to '  # words before the current sub-task in a plan text


@dataclass(frozen=True)
class Frame:
    """One recorded frame with its labels."""

    observation: Observation
    actions: np.ndarray  # (horizon, dof + gripper) action label of training: [rad], opening [m]
    text: str  # plan label; empty: none
    plan: Plan | None
    future: np.ndarray  # (H, W, 3) uint8 of the first camera, at the end of the chunk
    points: np.ndarray  # (views, points, 2) grounding points, shares of the view; NaN: unknown


@dataclass
class Sums:
    """Collects numbers by name and averages them at the end."""

    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, value: float) -> None:
        self.values.setdefault(name, []).append(value)

    def means(self) -> dict[str, float]:
        return {name: float(np.mean(values)) for name, values in self.values.items()}


def recorded_frames(
    policy: Policy,
    folder: Path,
    *,
    frames: int = 200,
    decoded: int = 40,
    imagine_steps: int = 18,
    tokenizer: ImageTokenizer | None = None,
    console: Console | None = None,
) -> dict[str, float | int]:
    """Return measures by name, means over frames spread evenly over the dataset's episodes.

    frames: number of frames with a chunk. decoded: number of these with a plan and an image, which take many forwards.
    Episodes with seeds below NOT_TRAINED are left out. Action errors are |predicted - labelled set-point|. Images are
    compared in the resolution of the predicted ones. Two references are measured, too: the reconstruction by
    `tokenizer` and the guess that nothing moves ('present image'). Outputs that a policy lacks are left out. Raises
    ValueError where the dataset does not fit the model or has no usable frame.
    """
    info = policy.info
    dataset = Dataset(folder)
    chosen = _choose(dataset, info.horizon * stride(dataset, info), frames, folder)
    total = sum(len(at) for at in chosen.values())
    every = max(1, -(-total // decoded))
    sums, count = Sums(), 0
    with Progress(console=console, transient=True) as bar:
        line = bar.add_task('recorded frames', total=total)
        for frame in _frames(dataset, chosen, policy):
            _act(policy, frame, sums)
            if count % every == 0:
                _plan(policy, frame, sums)
                _imagine(policy, frame, sums, imagine_steps, tokenizer)
            count += 1
            bar.advance(line)
    return {'frames': count, 'frames with plan and image': len(range(0, count, every)), **sums.means()}


def _choose(dataset: Dataset, span: int, frames: int, folder: Path) -> dict[int, list[int]]:
    """Return episode -> frames with `span` frames after them, spread evenly, about `frames` in all."""
    usable = {
        e.index: e.length - span
        for e in dataset.episodes
        if e.length > span and int(e.extra.get('seed', NOT_TRAINED)) >= NOT_TRAINED
    }
    if not usable:
        raise ValueError(
            f'{folder} has no episode that is longer than {span} frames and was not trained on: collect some with '
            f'./vla train collect --seed {NOT_TRAINED}'
        )
    ends = np.cumsum(list(usable.values()))
    picks = np.unique(np.linspace(0, ends[-1] - 1, min(frames, int(ends[-1]))).round().astype(int))
    chosen: dict[int, list[int]] = {}
    for pick in picks:
        i = int(np.searchsorted(ends, pick, side='right'))
        chosen.setdefault(list(usable)[i], []).append(int(pick - (ends[i - 1] if i else 0)))
    return chosen


def _frames(dataset: Dataset, chosen: dict[int, list[int]], policy: Policy) -> Iterator[Frame]:
    info = policy.info
    frames = stride(dataset, info)
    for episode, at in _pieces(dataset, chosen, info.horizon * frames):
        ends = np.minimum(starts(episode, info.dof) + info.horizon * frames, len(episode) - 1)
        needed = {*at, *(int(ends[t]) for t in at)}
        views = {camera: _pictures(episode, image(camera), needed) for camera in info.cameras}
        state = np.asarray(episode.columns[STATE], np.float64)
        actions = chunks_of(episode, info.dof, info.horizon, frames)
        texts, parts = texts_of(episode), plans(episode)
        points = _points(dataset, episode, policy)
        for t in at:
            observation = Observation(
                t_ref=round(t / dataset.fps * 1e9),
                images={camera: pictures[t] for camera, pictures in views.items()},
                positions=state[t, : info.dof],
                velocities=np.zeros(info.dof),
                gripper=float(state[t, info.dof]) if info.gripper else 0.0,
                instruction=episode.task,
            )
            yield Frame(observation, actions[t], texts[t], parts[t], views[info.cameras[0]][int(ends[t])], points[t])


def _pieces(dataset: Dataset, chosen: dict[int, list[int]], span: int) -> Iterator[tuple[Episode, list[int]]]:
    """Yield the chosen frames by episode and task, without those whose chunk would reach into another task."""
    for index, at in chosen.items():
        begin = 0
        for piece in dataset.episode(index).by_task():
            inside = [t - begin for t in at if begin <= t < begin + len(piece) - span]
            begin += len(piece)
            if inside:
                yield piece, inside


def _points(dataset: Dataset, episode: Episode, policy: Policy) -> np.ndarray:
    """Return the grounding points (T, views, points, 2), see Frame. Points at the edge of a view are outside: NaN."""
    count = policy.info.point_bins or _EXACT
    found = grounding_points(dataset, episode, policy.info, count)
    inside = ((found > 0) & (found < count - 1)).all(-1, keepdims=True)
    return np.where(inside, (bins.dequantize(found.clip(0, count - 1), count) + 1) / 2, np.nan)


def _pictures(episode: Episode, key: str, wanted: set[int]) -> dict[int, np.ndarray]:
    return {t: picture for t, picture in enumerate(episode.frames(key)) if t in wanted}


def _act(policy: Policy, frame: Frame, sums: Sums) -> None:
    found, dof = policy.act(frame.observation), policy.info.dof
    chunk = found.chunk
    error = np.abs(chunk.positions - frame.actions[:, :dof])
    sums.add('action error [rad]', float(error.mean()))
    sums.add('action error of the first step [rad]', float(error[0].mean()))
    sums.add('action error of the last step [rad]', float(error[-1].mean()))
    still = np.abs(frame.observation.positions - frame.actions[:, :dof])
    sums.add('action error, standing still [rad]', float(still.mean()))
    if len(chunk.gripper):
        sums.add('gripper error [m]', float(np.abs(chunk.gripper - frame.actions[:, dof]).mean()))

    if POINTS not in policy.info.outputs:
        return
    for off in np.linalg.norm(found.points - frame.points, axis=-1).flatten():
        if np.isfinite(off):
            sums.add('grounding error [share of the view]', float(off))
            sums.add('grounding error below 0.05', float(off < 0.05))


def _plan(policy: Policy, frame: Frame, sums: Sums) -> None:
    if frame.plan is None or PLAN not in policy.info.outputs:
        return
    text = finish(policy.start(PLAN, frame.observation, PlanOptions())).text.strip()
    sums.add('plan text exact', float(text == frame.text))
    sums.add('current sub-task right', float(text.rpartition(CURRENT)[2].rstrip('.') == frame.plan.current))


def _imagine(policy: Policy, frame: Frame, sums: Sums, steps: int, tokenizer: ImageTokenizer | None) -> None:
    if IMAGE not in policy.info.outputs:
        return
    imagined = finish(policy.start(IMAGE, frame.observation, ImageOptions(steps))).image
    side = len(imagined)
    true, present = (_pixels(picture, side) for picture in (frame.future, _present(policy, frame)))
    pictures = {'imagined': _pixels(imagined, side)}
    if tokenizer is not None:
        pictures['tokenizer'] = _best(tokenizer, frame.future)
    pictures['present image'] = present
    for name, picture in pictures.items():
        sums.add(f'{name} PSNR [dB]', float(psnr(picture, true)))
        sums.add(f'{name} SSIM', float(ssim(picture, true)))


@torch.inference_mode()
def _best(tokenizer: ImageTokenizer, picture: np.ndarray) -> Tensor:
    """Return the tokenizer's reconstruction of a picture, (1, 3, side, side) in [0, 1]."""
    device = next(tokenizer.parameters()).device
    codes = tokenizer.encode(preprocess(picture, tokenizer.config.resolution, device)[None])
    return (tokenizer.decode(codes).cpu() / 2 + 0.5).clamp(0, 1)


def _present(policy: Policy, frame: Frame) -> np.ndarray:
    return frame.observation.images[policy.info.cameras[0]]


def _pixels(picture: np.ndarray, side: int) -> Tensor:
    """Return the preprocessed picture (1, 3, side, side) in [0, 1]."""
    return (preprocess(picture, side) / 2 + 0.5).clamp(0, 1)[None]
