"""Numbers of a replay: chunks of the model compared with the motion of the robot."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from vla_bringup.replay.driven import ACROSS, Timeline, parts_of
from vla_core.clocks import SECONDS
from vla_core.motion.path import ChunkPath

GAP = 0.1  # [s] longest gap of joint states for interpolation
GRIPPER_GAP = 0.3  # [s] the same of the gripper: Franka's hand publishes 10 to 15 states per second


@dataclass(frozen=True)
class PredictedChunk:
    """A chunk of the model; step i is due at t_ref + (i + 1) dt."""

    t_ref: int  # [ns] on an increasing time axis, as all times here
    at: int  # [ns] at which the chunk was ready
    positions: np.ndarray  # (horizon, dof) [rad]
    gripper: np.ndarray  # (horizon,) [m], or (0,)
    dt: float  # [s]
    instruction: str = ''


@dataclass(frozen=True)
class Measures:
    """Measures of n chunks; NaN where no state was recorded."""

    due: np.ndarray  # (n, horizon) [ns]
    part: np.ndarray  # (n, horizon) int8, index into driven.PARTS
    stretch: np.ndarray  # (n,) index of the stretch at t_ref
    recorded: np.ndarray  # (n, horizon, dof) [rad]
    error: np.ndarray  # (n, horizon, dof) [rad] predicted - recorded
    gripper_recorded: np.ndarray  # (n, horizon) [m]
    gripper_error: np.ndarray  # (n, horizon) [m]; all NaN without a gripper
    staying: np.ndarray  # (n, horizon, dof) [rad] error of an arm at rest
    seam: np.ndarray  # (n,) [rad] largest joint jump from the chunk before, at the switch to this one

    def of(self, *parts: int) -> 'Measures':
        """Return the measures with NaN for steps outside these parts."""
        out = ~np.isin(self.part, parts)
        arrays = {
            name: np.where(out[..., None] if value.ndim == 3 else out, np.nan, value)
            for name in ('recorded', 'error', 'gripper_recorded', 'gripper_error', 'staying')
            for value in [getattr(self, name)]
        }
        return replace(self, **arrays, seam=np.where(out.all(1), np.nan, self.seam))

    def chunks(self, chosen: np.ndarray) -> 'Measures':
        """Return the measures of the chosen chunks, (n,) bool."""
        return Measures(**{f.name: getattr(self, f.name)[chosen] for f in fields(self)})

    @property
    def norm(self) -> np.ndarray:
        """Length of the error over the joints, (n, horizon) [rad]."""
        return np.linalg.norm(self.error, axis=-1)

    @property
    def still(self) -> np.ndarray:
        """Length of the error of an arm at rest, (n, horizon) [rad]."""
        return np.linalg.norm(self.staying, axis=-1)

    @property
    def cycle(self) -> np.ndarray:
        """Mean of `norm` over the recorded steps, (n,) [rad]."""
        return mean_known(self.norm, 1)


def mean_known(values: np.ndarray, axis: int) -> np.ndarray:
    """Return the mean over an axis without NaN; NaN where all values are NaN."""
    known = np.isfinite(values)
    count = known.sum(axis)
    return np.where(count > 0, np.where(known, values, 0.0).sum(axis) / np.maximum(count, 1), np.nan)


def interpolate(stamps: np.ndarray, values: np.ndarray, times: np.ndarray, max_gap: float = GAP) -> np.ndarray:
    """Interpolate values (n, k) at increasing stamps (n,) [ns] linearly; return (m, k) at times (m,) [ns].

    NaN outside, and where the neighbours are more than max_gap [s] apart.
    """
    if not len(stamps):
        return np.full((len(times), values.shape[1]), np.nan)
    after = np.searchsorted(stamps, times, side='left')
    exact = (after < len(stamps)) & (stamps[np.minimum(after, len(stamps) - 1)] == times)
    high = np.clip(after, 1, len(stamps) - 1) if len(stamps) > 1 else np.zeros(len(times), int)
    low = np.maximum(high - 1, 0)
    apart = np.maximum(stamps[high] - stamps[low], 1)
    share = ((times - stamps[low]) / apart)[:, None]
    found = values[low] + (values[high] - values[low]) * share
    known = (times >= stamps[0]) & (times <= stamps[-1]) & (apart <= max_gap / SECONDS)
    found = np.where(known[:, None], found, np.nan)
    found[exact] = values[after[exact]]
    return found


def measure(
    predicted: Sequence[PredictedChunk],
    arm: tuple[np.ndarray, np.ndarray],
    opening: tuple[np.ndarray, np.ndarray],
    line: Timeline,
) -> Measures:
    """Compare chunks, all of one horizon, with the motion of the robot. Raises ValueError without a chunk.

    arm, opening: measured stamps (k,) [ns] and values (k, dof) [rad], (k, 1) [m]. line: the driven time.
    """
    if not predicted:
        raise ValueError('there is no chunk to measure')
    t_ref = np.array([s.t_ref for s in predicted], np.int64)
    horizon, dof = predicted[0].positions.shape
    after = np.arange(1, horizon + 1)
    due = np.stack([s.t_ref + np.rint(after * s.dt / SECONDS).astype(np.int64) for s in predicted])
    recorded = interpolate(*arm, due.ravel()).reshape(len(predicted), horizon, dof)
    fingers = interpolate(*opening, due.ravel(), GRIPPER_GAP).reshape(len(predicted), horizon)
    # A chunk is compared with an arm that stays on the same steps: both need the state at t_ref.
    staying = interpolate(*arm, t_ref)[:, None] - recorded
    recorded[np.isnan(staying)] = np.nan
    part = parts_of(line, t_ref, due, np.isfinite(staying).all(-1), [s.instruction for s in predicted])
    recorded[part == ACROSS], staying[part == ACROSS], fingers[part == ACROSS] = np.nan, np.nan, np.nan
    error = np.stack([s.positions for s in predicted]) - recorded
    grip = np.stack([s.gripper if s.gripper.size else np.full(horizon, np.nan) for s in predicted]) - fingers
    stretch = line.at(t_ref)
    whole = np.array([line.stretches[i].whole for i in stretch])
    return Measures(due, part, stretch, recorded, error, fingers, grip, staying, seams(predicted, whole))


def seams(predicted: Sequence[PredictedChunk], whole: np.ndarray) -> np.ndarray:
    """Return the seam of each chunk, (n,) [rad]: the largest joint difference to the path of the chunk before.

    It is taken at the first step that is due after the chunk was ready. NaN for the first chunk, after the end of the
    chunk before, and where `whole` (n,) changes: a new instruction, a reset or a clock step.
    """
    found = np.full(len(predicted), np.nan)
    for k, (old, new) in enumerate(itertools.pairwise(predicted), 1):
        step = max(math.floor((new.at - new.t_ref) * SECONDS / new.dt + 1e-9), 0)  # its index; it is due after `at`
        if whole[k] != whole[k - 1] or step >= len(new.positions) or new.t_ref <= old.t_ref:
            continue
        due = (new.t_ref - old.t_ref) * SECONDS + (step + 1) * new.dt  # [s] since the old chunk's t_ref
        if due <= len(old.positions) * old.dt + 1e-6:
            path = ChunkPath(old.positions, old.dt).sample(np.array([due]))[0][0]
            found[k] = np.abs(new.positions[step] - path).max()
    return found


def bootstrap(differences: np.ndarray, block: int, draws: int = 4000, seed: int = 0) -> tuple[float, float, float]:
    """Return mean, low and high of the 95 % interval of paired differences (n,) in the order of time.

    Circular block bootstrap (Politis and Romano, 1992): neighbours are correlated, so runs of `block` are drawn. NaN
    are left out; the result is NaN if none is left.
    """
    d = differences[np.isfinite(differences)]
    if not len(d):
        return math.nan, math.nan, math.nan
    block = min(max(block, 1), len(d))
    starts = np.random.default_rng(seed).integers(0, len(d), (draws, math.ceil(len(d) / block)))
    sums = np.cumsum(np.concatenate([[0.0], d, d]))  # a run from i: sums[i + block] - sums[i]
    means = (sums[starts + block] - sums[starts]).sum(1) / (block * starts.shape[1])
    low, high = np.percentile(means, [2.5, 97.5])
    return float(d.mean()), float(low), float(high)


def worst(values: np.ndarray, times: np.ndarray, count: int, apart: float) -> list[int]:
    """Return the indices of at most `count` largest values (n,) whose times (n,) [ns] are `apart` [s] or more."""
    chosen: list[int] = []
    for i in np.argsort(-np.nan_to_num(values, nan=-1.0), kind='stable'):
        if len(chosen) == count or not np.isfinite(values[i]):
            break
        if all(abs(int(times[i]) - int(times[j])) * SECONDS >= apart for j in chosen):
            chosen.append(int(i))
    return chosen
