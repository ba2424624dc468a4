"""What a policy says about recorded frames that it was not trained on: actions, plans, imagined images."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from vla_model.families.mmact.policy import MaskedPolicy
from vla_model.image_tokenizer import preprocess
from vla_model.tokens import bins
from vla_model.types import Observation
from vla_training.data.annotate import Plan, plans
from vla_training.data.annotate import plan_texts as texts_of
from vla_training.data.features import STATE, image
from vla_training.image_tokenizer.metrics import psnr, ssim
from vla_training.lerobot import Dataset, Episode
from vla_training.train.tokenize import chunks_of, points_of, starts, stride

NOT_TRAINED = 1_000_000  # seeds from here on are never trained on
CURRENT = 'continue to '  # what comes before the current sub-task in a plan text


@dataclass(frozen=True)
class Frame:
    """One recorded frame and what came after it."""

    observation: Observation
    actions: np.ndarray  # (horizon, dof + gripper) as training wants them: [rad], opening [m]
    text: str  # the plan as it should be; empty: nobody said
    plan: Plan | None
    future: np.ndarray  # (H, W, 3) uint8 of the first camera, when the chunk is done
    points: np.ndarray  # (views, points, 2) where the things are that the task names, shares of the view; NaN: unknown


@dataclass
class Sums:
    """Numbers under a name, averaged at the end."""

    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, value: float) -> None:
        self.values.setdefault(name, []).append(value)

    def means(self) -> dict[str, float]:
        return {name: float(np.mean(values)) for name, values in self.values.items()}


def recorded_frames(
    policy: MaskedPolicy,
    folder: Path,
    *,
    frames: int = 200,
    decoded: int = 40,
    plan_length: int = 112,
    plan_steps: int = 96,
    imagine_steps: int = 18,
    console: Console | None = None,
) -> dict[str, float | int]:
    """Measures by name, means over frames spread evenly over the dataset's episodes.

    frames: how many are acted on; decoded: how many of them get a plan and an image, which take many forwards. Of a
    simulator's dataset only episodes with seeds from NOT_TRAINED on are used. Action errors: |predicted - wanted
    set-point|, wanted as in training. Images are compared in the image tokenizer's resolution, also with the best that
    the tokenizer can show ('tokenizer'), and with the guess that nothing moves ('present image'). Raises ValueError
    where the dataset does not fit the model or has nothing to use.
    """
    robot = policy.config.robot
    dataset = Dataset(folder)
    chosen = _choose(dataset, robot.horizon * stride(dataset, robot), frames, folder)
    total = sum(len(at) for at in chosen.values())
    every = max(1, -(-total // decoded))
    sums, count = Sums(), 0
    with Progress(console=console, transient=True) as bar:
        line = bar.add_task('recorded frames', total=total)
        for frame in _frames(dataset, chosen, policy):
            _act(policy, frame, sums)
            if count % every == 0:
                _plan(policy, frame, sums, plan_length, plan_steps)
                _imagine(policy, frame, sums, imagine_steps)
            count += 1
            bar.advance(line)
    return {'frames': count, 'frames with plan and image': len(range(0, count, every)), **sums.means()}


def _choose(dataset: Dataset, span: int, frames: int, folder: Path) -> dict[int, list[int]]:
    """Episode -> frames that have `span` frames after them, about as many as asked for, evenly."""
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


def _frames(dataset: Dataset, chosen: dict[int, list[int]], policy: MaskedPolicy) -> Iterator[Frame]:
    robot = policy.config.robot
    frames = stride(dataset, robot)
    for episode, at in _pieces(dataset, chosen, robot.horizon * frames):
        ends = np.minimum(starts(episode, robot.dof) + robot.horizon * frames, len(episode) - 1)
        needed = {*at, *(int(ends[t]) for t in at)}
        views = {camera: _pictures(episode, image(camera), needed) for camera in robot.cameras}
        state = np.asarray(episode.columns[STATE], np.float64)
        actions = chunks_of(episode, robot.dof, robot.horizon, frames)
        texts, parts = texts_of(episode), plans(episode)
        points = _points(dataset, episode, policy)
        for t in at:
            observation = Observation(
                t_ref=round(t / dataset.fps * 1e9),
                images={camera: pictures[t] for camera, pictures in views.items()},
                positions=state[t, : robot.dof],
                velocities=np.zeros(robot.dof),
                gripper=float(state[t, robot.dof]) if robot.gripper else 0.0,
                instruction=episode.task,
            )
            yield Frame(observation, actions[t], texts[t], parts[t], views[robot.cameras[0]][int(ends[t])], points[t])


def _pieces(dataset: Dataset, chosen: dict[int, list[int]], span: int) -> Iterator[tuple[Episode, list[int]]]:
    """The chosen frames by episode and task; without those whose chunk would reach into another task."""
    for index, at in chosen.items():
        begin = 0
        for piece in dataset.episode(index).by_task():
            inside = [t - begin for t in at if begin <= t < begin + len(piece) - span]
            begin += len(piece)
            if inside:
                yield piece, inside


def _points(dataset: Dataset, episode: Episode, policy: MaskedPolicy) -> np.ndarray:
    """(T, views, points, 2), see Frame; what is at the edge of a view is out of it."""
    count = policy.config.vocabulary.bins
    found = points_of(dataset, episode, policy.config.robot, count)
    inside = ((found > 0) & (found < count - 1)).all(-1, keepdims=True)
    return np.where(inside, (bins.dequantize(found.clip(0, count - 1), count) + 1) / 2, np.nan)


def _pictures(episode: Episode, key: str, wanted: set[int]) -> dict[int, np.ndarray]:
    return {t: picture for t, picture in enumerate(episode.frames(key)) if t in wanted}


def _act(policy: MaskedPolicy, frame: Frame, sums: Sums) -> None:
    chunk, dof = policy.act(frame.observation), policy.config.robot.dof
    error = np.abs(chunk.positions - frame.actions[:, :dof])
    sums.add('action error [rad]', float(error.mean()))
    sums.add('action error of the first step [rad]', float(error[0].mean()))
    sums.add('action error of the last step [rad]', float(error[-1].mean()))
    still = np.abs(frame.observation.positions - frame.actions[:, :dof])
    sums.add('action error, staying where it is [rad]', float(still.mean()))
    if len(chunk.gripper):
        sums.add('gripper error [m]', float(np.abs(chunk.gripper - frame.actions[:, dof]).mean()))

    for off in np.linalg.norm(policy.pointed - frame.points, axis=-1).flatten():
        if np.isfinite(off):
            sums.add('pointed beside it [share of the view]', float(off))
            sums.add('pointed within 0.05 of it', float(off < 0.05))


def _plan(policy: MaskedPolicy, frame: Frame, sums: Sums, length: int, steps: int) -> None:
    if frame.plan is None:
        return
    text = policy.start_plan(frame.observation, length=length, steps=steps).run().text.strip()
    sums.add('plan text exact', float(text == frame.text))
    sums.add('current sub-task right', float(text.rpartition(CURRENT)[2].rstrip('.') == frame.plan.current))


def _imagine(policy: MaskedPolicy, frame: Frame, sums: Sums, steps: int) -> None:
    side = policy.config.image_tokenizer.resolution
    true, present = (_pixels(picture, side) for picture in (frame.future, _present(policy, frame)))
    imagined = policy.start_imagine(frame.observation, steps=steps).run().image
    with torch.inference_mode():
        tokenizer = policy.image_tokenizer
        codes = tokenizer.encode(preprocess(frame.future, side, policy.device)[None])
        best = (tokenizer.decode(codes).cpu() / 2 + 0.5).clamp(0, 1)
    for name, picture in (('imagined', _pixels(imagined, side)), ('tokenizer', best), ('present image', present)):
        sums.add(f'{name} PSNR [dB]', float(psnr(picture, true)))
        sums.add(f'{name} SSIM', float(ssim(picture, true)))


def _present(policy: MaskedPolicy, frame: Frame) -> np.ndarray:
    return frame.observation.images[policy.config.robot.cameras[0]]


def _pixels(picture: np.ndarray, side: int) -> Tensor:
    """(1, 3, side, side) in [0, 1]"""
    return (preprocess(picture, side) / 2 + 0.5).clamp(0, 1)[None]
