"""Labels of the frames of an episode, as tensors of a shard: grounding points, traces, sent actions, depth codes."""

import json
from collections.abc import Iterable

import numpy as np

from vla_model.config import ModelConfig, RobotInterface
from vla_model.families.mmact.steering import line_on
from vla_model.observation import squared, unsquared
from vla_model.policy import PolicyInfo
from vla_model.tokens import bins
from vla_model.tokens.depth_tokenizer import DepthTokenizer
from vla_training.data import shards, traces
from vla_training.data.features import ACTION, DEPTH_SIDE, GROUNDING_POINTS, depth, ee_pixel, image, tool_pixel
from vla_training.data.shards import LEVELS, LINE, NOWHERE
from vla_training.lerobot import Dataset, Episode


def grounding_points(data: Dataset, episode: Episode, robot: RobotInterface | PolicyInfo, count: int) -> np.ndarray:
    """Return the grounding points in the order of the instruction, (T, views, points, 2) int64 in `count` bins.

    NOWHERE: unknown. A point outside the image is at its edge.
    """
    found = np.full((len(episode), len(robot.cameras), robot.points, 2), shards.NOWHERE)
    for t, text in enumerate(episode.columns.get(GROUNDING_POINTS, [])):
        try:
            views = json.loads(text) if text else {}
        except ValueError as error:
            raise ValueError(
                f'{data.folder}: {GROUNDING_POINTS} of {episode.task!r}, frame {t}, is no JSON: {error}'
            ) from None
        for view, camera in enumerate(robot.cameras):
            places = views.get(camera, {})
            for i, name in enumerate(names_in(episode.task, places)[: robot.points]):
                place = squared(places[name], *data.features[image(camera)].shape[:2])
                found[t, view, i] = bins.quantize(2 * place - 1, count)
    return found


def names_in(text: str, names: Iterable[str]) -> list[str]:
    """Return the names that the text contains, in its order."""
    at = {name: text.find(name) for name in names}
    return sorted((name for name in at if at[name] >= 0), key=lambda name: at[name])


def exact(normalized: np.ndarray) -> np.ndarray:
    """Return numbers in [-1, 1] in steps of 1 / LEVELS, int64, same shape; others are at the ends."""
    return np.rint((np.clip(normalized, -1, 1) + 1) / 2 * LEVELS).astype(np.int64)


def world(config: ModelConfig, sent: np.ndarray, stride: int) -> dict[str, np.ndarray]:
    """Return `sent` and `ahead` of the first frames of an episode; rows count from its first frame.

    sent: actions (T, horizon, action_dim) in robot units. Frames whose chunk ends after the last frame are unknown.
    """
    length, horizon = sent.shape[:2]
    rows = np.arange(length)[:, None] + stride * np.arange(1, horizon + 1)
    known = rows[:, -1] < length
    normalized = exact(config.ranges('action').normalize(sent))
    return {
        'sent': np.where(known[:, None, None], normalized, NOWHERE),
        'ahead': np.where(known[:, None], rows, -1),
    }


def ways(data: Dataset, episode: Episode, config: ModelConfig, length: int) -> dict[str, np.ndarray]:
    """Return `trace` of the first `length` frames, (length, LINE, 2) int64 bins; NOWHERE without tool pixels.

    A trace is unknown, too, if a tool pixel on its way is (NaN).
    """
    robot, count = config.robot, config.vocabulary.bins
    out = np.full((length, LINE, 2), NOWHERE)
    camera = robot.cameras[0]
    pixels = episode.columns.get(ee_pixel(camera), episode.columns.get(tool_pixel(camera)))
    if pixels is None or not robot.gripper:
        return {'trace': out}
    shares = squared(np.asarray(pixels, np.float64), *data.features[image(camera)].shape[:2])
    ends = traces.ends(np.asarray(episode.columns[ACTION], np.float64)[:, robot.dof], 1 / data.fps)
    for i in range(length):
        way = shares[i : ends[i] + 1]
        found = None if np.isnan(way).any() else traces.line(way)
        if found is not None:
            out[i] = bins.quantize(2 * found - 1, count)
    return {'trace': out}


def drawn(trace: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return the traces (T, LINE, 2) [bins] as a person may draw them; `traces.disturbed`. NOWHERE stays."""
    out = trace.copy()
    for i in np.flatnonzero(trace[:, 0, 0] != NOWHERE):
        shares = (bins.dequantize(trace[i], count) + 1) / 2
        out[i] = bins.quantize(2 * traces.disturbed(shares, rng) - 1, count)
    return out


def with_line(frame: np.ndarray, trace: np.ndarray, count: int) -> np.ndarray:
    """Return a frame with the line of a trace (LINE, 2) [bins] on it; without one where the trace is unknown."""
    if trace[0, 0] == NOWHERE:
        return frame
    return line_on(frame, unsquared((bins.dequantize(trace, count) + 1) / 2, *frame.shape[:2]))


def depth_codes(episode: Episode, camera: str, tokenizer: DepthTokenizer, length: int) -> np.ndarray:
    """Return the depth codes of the first `length` frames, (length, DEPTH_CODES) int64; NOWHERE without depth maps."""
    column = episode.columns.get(depth(camera))
    if column is None:
        return np.full((length, shards.DEPTH_CODES), NOWHERE)
    metres = np.asarray(column[:length], np.float32).reshape(-1, DEPTH_SIDE, DEPTH_SIDE) / 1000
    return np.asarray(tokenizer.encode(metres))
