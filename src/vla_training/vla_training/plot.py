"""Plots the curves of a run's log.csv."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

LOSSES = {
    'loss': ('action_loss', 'val_action_loss', 'text_loss', 'val_text_loss', 'image_loss', 'val_image_loss'),
    'share of right tokens': (
        'action_right', 'val_action_right', 'text_right', 'val_text_right', 'image_right', 'val_image_right',
    ),
}  # fmt: skip


def plot_log(log: Path, out: Path, panels: Mapping[str, Sequence[str]] = LOSSES) -> None:
    """Write a picture with a panel per label and a line per column of the log. Lines of validation are dashed.

    Raises ValueError where the log has none of the columns.
    """
    with log.open(newline='') as file:
        rows = list(csv.DictReader(file))
    found = {name: [(float(r['step']), float(r[name])) for r in rows if r.get(name)]
             for names in panels.values() for name in names}  # fmt: skip
    if not any(found.values()):
        raise ValueError(f'{log} has no step to plot: train for log_every steps first')
    colours = {name: f'C{i}' for i, name in enumerate(dict.fromkeys(_modality(n) for n in found))}
    figure = Figure(figsize=(9, 3 * len(panels)), layout='constrained')
    all_axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (label, names) in zip(all_axes, panels.items(), strict=True):
        for name in names:
            if found[name]:
                held = name.startswith('val_')
                style = {'color': colours[_modality(name)], 'linestyle': '--' if held else '-'}
                text = f'{_modality(name)}, validation' if held else _modality(name)
                axes.plot(*zip(*found[name], strict=True), label=text, marker='.' if held else '', **style)
        if axes.lines:
            axes.legend()
        if label.endswith('loss') and min((y for n in names for _, y in found[n]), default=0) > 0:
            axes.set_yscale('log')
        axes.grid(alpha=0.3)
        axes.set_ylabel(label)
    all_axes[-1].set_xlabel('step')
    figure.savefig(out)


def _modality(column: str) -> str:
    """Return the modality of a column, or its name."""
    return column.removeprefix('val_').removesuffix('_loss').removesuffix('_right')
