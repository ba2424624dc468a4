"""Figures of a replay."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vla_bringup.replay.driven import DRIVEN, Timeline
from vla_bringup.replay.measures import Measures, mean_known
from vla_bringup.replay.offline import Run
from vla_core.clocks import SECONDS

COLOURS = ('#1f4e9c', '#d95f02')  # of the models
GREY, SHADE, LACK = '#777777', '#e8e8e8', '#fbe0c8'
FANS = 60  # most chunks in the figure, each a thin line from its start


@dataclass(frozen=True)
class Result:
    """Results of one model on the bag. began: first time of the bag [ns], the origin of all time axes."""

    name: str
    run: Run
    measures: Measures
    line: Timeline
    dt: float  # [s]
    joint_names: tuple[str, ...]
    began: int

    @property
    def times(self) -> np.ndarray:
        """Times of the chunks, (n,) [s]."""
        return (np.array([c.t_ref + c.shift for c in self.run.cycles], np.int64) - self.began) * SECONDS

    @property
    def driven(self) -> Measures:
        """Measures of the driven part."""
        return self.measures.of(DRIVEN)

    @property
    def steps(self) -> np.ndarray:
        """Time from t_ref to each step, (horizon,) [s]."""
        return self.dt * np.arange(1, self.measures.error.shape[1] + 1)


def write_figures(results: Sequence[Result], folder: Path) -> list[tuple[str, str]]:
    """Write PNG files; return (file name, caption) of each."""
    made = [
        (
            'error_by_horizon',
            _horizon,
            'Error of the chunks to the driven motion of the robot, over the time ahead',
        ),
        ('joints', _joints, 'Motion of the robot (black) and chunks (colour); grey: not driven'),
        ('timeline', _timeline, 'Each chunk: error and seam where it was driven, inference time, confidence'),
    ]
    if any(r.run.prediction_errors for r in results):
        made.append(
            ('prediction_error', _prediction_error, 'Prediction error of the image of the first camera (0 .. 1)')
        )
    written = []
    for name, draw, caption in made:
        figure = draw(results)
        figure.savefig(folder / f'{name}.png', dpi=100)
        written.append((f'{name}.png', caption))
    return written


def _horizon(results: Sequence[Result]) -> Figure:
    figure = Figure(figsize=(12, 4.6), layout='constrained')
    left, right = figure.subplots(1, 2)
    for result, colour in zip(results, COLOURS, strict=False):
        driven = result.driven
        norm, steps = 1e3 * driven.norm, result.steps
        known = np.isfinite(norm).any(0)
        if not known.any():
            continue
        low, mid, high = np.nanpercentile(norm[:, known], [25, 50, 95], axis=0)
        left.fill_between(steps[known], low, high, color=colour, alpha=0.12, label=f'{result.name}: 25 .. 95 %')
        left.plot(steps[known], mid, color=colour, linestyle=':', label='median')
        left.plot(steps, mean_known(norm, 0), color=colour, label='mean')
        style = '-' if result is results[0] else '--'
        for j, joint in enumerate(result.joint_names):
            mean = 1e3 * mean_known(np.abs(driven.error[..., j]), 0)
            right.plot(steps, mean, color=f'C{j}', linestyle=style, label=joint if result is results[0] else None)
    still = 1e3 * mean_known(results[0].driven.still, 0)
    left.plot(results[0].steps, still, color=GREY, linestyle='--', label='mean if the arm stays')
    left.set_ylabel('length of the error over all joints [mrad]')
    right.set_ylabel('mean |error| of each joint [mrad]' + (', second model dashed' if len(results) > 1 else ''))
    for ax in (left, right):
        ax.set_xlabel('step due after t_ref [s]')
        ax.set_ylim(bottom=0)
        ax.legend(fontsize=7, frameon=False)
        _clean(ax)
    return figure


def _joints(results: Sequence[Result]) -> Figure:
    names, first = results[0].joint_names, results[0]
    with_gripper = any(np.isfinite(r.measures.gripper_error).any() for r in results)
    rows = (len(names) + with_gripper + 1) // 2
    figure = Figure(figsize=(12, 1.9 * rows), layout='constrained')
    axes = list(figure.subplots(rows, 2, sharex=True, squeeze=False).flat)
    session = first.run.session
    stamps, values = session.arm.arrays(len(names))
    for j, (ax, name) in enumerate(zip(axes, names, strict=False)):
        ax.plot((stamps - first.began) * SECONDS, values[:, j], color='black', linewidth=1)
        ax.set_ylabel(f'{name} [rad]', fontsize=7)
        _fans(ax, results, lambda c, j=j: c.chunk.positions[:, j])  # type: ignore[misc]
    if with_gripper:
        stamps, values = session.opening.arrays(1)
        ax = axes[len(names)]
        ax.plot((stamps - first.began) * SECONDS, 1e3 * values[:, 0], color='black', linewidth=1)
        ax.set_ylabel('gripper [mm]', fontsize=7)
        _fans(ax, results, lambda c: 1e3 * c.chunk.gripper)
    for ax in axes[len(names) + with_gripper :]:
        ax.set_visible(False)
    for ax in axes[: len(names) + with_gripper]:
        _shade(ax, first)
        ax.tick_params(labelsize=7)
        _clean(ax)
    for ax in axes[-2:]:
        ax.set_xlabel('[s]')
    return figure


def _fans(ax: Axes, results: Sequence[Result], values: Callable) -> None:
    for result, colour in zip(results, COLOURS, strict=False):
        driven = np.isfinite(result.driven.norm).any(1)
        cycles = [c for c, drawn in zip(result.run.cycles, driven, strict=True) if drawn or not driven.any()]
        for c in cycles[:: max(1, len(cycles) // FANS)]:
            y = values(c)
            if len(y):
                ax.plot(
                    (c.t_ref + c.shift - result.began) * SECONDS + result.steps,
                    y,
                    color=colour,
                    linewidth=0.6,
                    alpha=0.7,
                )


def _timeline(results: Sequence[Result]) -> Figure:
    figure = Figure(figsize=(12, 7.6), layout='constrained')
    axes = list(figure.subplots(4, 1, sharex=True))
    for result, colour in zip(results, COLOURS, strict=False):
        cycles, t = result.run.cycles, result.times
        confidence = [float(c.chunk.confidence.mean()) if c.chunk.confidence.size else np.nan for c in cycles]
        rows = (
            (1e3 * result.driven.cycle, 'mean error of the\nchunk [mrad]'),
            (1e3 * result.driven.seam, 'seam [mrad]'),
            (1e3 * np.array([c.inference_time for c in cycles]), 'inference [ms]'),
            (np.array(confidence), 'confidence'),
        )
        for ax, (values, label) in zip(axes, rows, strict=True):
            ax.plot(t, values, color=colour, linewidth=0.8, marker='.', markersize=2.5, label=result.name)
            ax.set_ylabel(label, fontsize=8)
    first = results[0]
    changes = {s.whole: s.start for s in reversed(first.line.stretches)}.values()
    for ax in axes:
        _shade(ax, first)
        for start, end in _gaps(first.times):
            ax.axvspan(start, end, color=LACK, zorder=0, linewidth=0)
        for change in changes:
            ax.axvline((change - first.began) * SECONDS, color=GREY, linewidth=0.6, linestyle=':')
    for ax in axes:
        ax.set_ylim(bottom=0)
        _clean(ax)
    axes[0].legend(fontsize=8, frameon=False)
    axes[-1].set_xlabel(
        '[s] grey: not driven; orange: no usable set of images and joints; '
        'dotted: an episode, another instruction, or a clock that was set back'
    )
    axes[-1].set_xlim(-0.5, max(float(r.times[-1]) for r in results) + 0.5)
    return figure


def _prediction_error(results: Sequence[Result]) -> Figure:
    figure = Figure(figsize=(12, 2.6), layout='constrained')
    ax = figure.subplots()
    for result, colour in zip(results, COLOURS, strict=False):
        if result.run.prediction_errors:
            due, values = zip(*result.run.prediction_errors, strict=True)
            ax.plot((np.array(due) - result.began) * SECONDS, values, color=colour, marker='o', label=result.name)
    ax.set_ylim(0, 1)
    ax.set_xlabel('time of the predicted image [s]')
    ax.legend(fontsize=8, frameon=False)
    _clean(ax)
    return figure


def _shade(ax: Axes, result: Result) -> None:
    """Shade times in which the robot was not driven."""
    for s in result.line.stretches:
        if s.part != DRIVEN:
            ax.axvspan(
                (s.start - result.began) * SECONDS, (s.end - result.began) * SECONDS, color=SHADE, zorder=0, linewidth=0
            )


def _gaps(times: np.ndarray) -> list[tuple[float, float]]:
    """Return the spans [s] between chunks that are more than twice the usual period apart."""
    if len(times) < 3:
        return []
    steps = np.diff(times)
    return [(float(times[i]), float(times[i + 1])) for i in np.flatnonzero(steps > 2 * np.median(steps))]


def _clean(ax: Axes) -> None:
    ax.grid(alpha=0.25)
    ax.set_axisbelow(True)
    for side in ('top', 'right'):
        ax.spines[side].set_visible(False)
