"""Pictures for people: the tool's way drawn in a camera's image, and what was imagined beside what is seen. No ROS."""

import functools
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vla_core.observe.prediction_error import square
from vla_policy_node.show.tool_path import Colour

SIDE = 320  # [pixel] of each half of the pair of pictures
GROUND, INK, FAINT, ALARM, MARK = '#16181d', '#ffffff', '#b8bcc6', '#ff7b72', '#ffd33d'
NOTHING = np.zeros((0, 2))


@functools.cache
def font(size: int) -> Any:
    """Pillow's own typeface; old Pillows have it in one size only."""
    try:
        return ImageFont.load_default(size)
    except TypeError:
        return ImageFont.load_default()


def draw_trace(
    image: np.ndarray, pixels: np.ndarray, colours: list[Colour], problem: str = '', named: np.ndarray = NOTHING
) -> np.ndarray:
    """A copy of image (height, width, 3) uint8 RGB with a line through pixels (n, 2) and a dot on each of them.

    pixels: column and row of the tool now, then of each step. colours: of the n - 1 steps. problem: why there is no
    line, written below. named (m, 2): places that get a cross with their number, from 1.
    """
    page = Image.fromarray(np.ascontiguousarray(image))
    draw = ImageDraw.Draw(page)
    unit = max(page.height / 256, 1.0)
    inks = [_ink(c) for c in colours]
    points = [(float(u), float(v)) for u, v in pixels]
    for line, ink in ((5 * unit, 'black'), (3 * unit, '')):  # dark below, so that it shows on any ground
        for a, b, own in zip(points, points[1:], inks, strict=False):
            draw.line([a, b], fill=ink or own, width=round(line))
    for (u, v), own in zip(points[1:], inks, strict=False):
        r = 3 * unit
        draw.ellipse([u - r, v - r, u + r, v + r], fill=own, outline='black')
    for u, v in points[:1]:
        r = 4.5 * unit
        draw.ellipse([u - r, v - r, u + r, v + r], outline='black', width=round(3 * unit))
        draw.ellipse([u - r, v - r, u + r, v + r], outline='white', width=round(1.5 * unit))
    for number, (u, v) in enumerate(named, 1):
        r = 5 * unit
        for width, ink in ((4 * unit, 'black'), (2 * unit, MARK)):
            draw.line([u - r, v - r, u + r, v + r], fill=ink, width=round(width))
            draw.line([u - r, v + r, u + r, v - r], fill=ink, width=round(width))
        place = u + r + 2 * unit, v
        draw.text(
            place, str(number), font=font(round(9 * unit)), fill=MARK, anchor='lm', stroke_width=2, stroke_fill='black'
        )
    if problem:
        size = round(11 * unit)
        words = wrapped(problem, round(page.width / (0.55 * size)))
        draw.multiline_text(
            (6, page.height - 6), words, font=font(size), fill=ALARM, anchor='ld', stroke_width=2, stroke_fill='black'
        )
    return np.asarray(page)


def side_by_side(imagined: np.ndarray, observed: np.ndarray, left: str, right: str, below: str) -> np.ndarray:
    """What was imagined, and what is seen, as the model sees it; (SIDE + 48, 2 SIDE + 4, 3) uint8 RGB.

    imagined: (side, side, 3), observed: (height, width, 3) uint8 RGB. left, right: words over each; below: below both.
    """
    page = Image.new('RGB', (2 * SIDE + 4, SIDE + 48), GROUND)
    draw = ImageDraw.Draw(page)
    for x, image, words in ((0, imagined, left), (SIDE + 4, observed, right)):
        page.paste(Image.fromarray(square(image, SIDE)), (x, 24))
        draw.text((x + 6, 5), words, font=font(13), fill=INK)
    draw.text((6, SIDE + 29), below, font=font(13), fill=FAINT)
    return np.asarray(page)


def wrapped(text: str, width: int) -> str:
    """Lines of at most `width` characters. A word that is longer, as of a path, is divided."""
    lines = ['']
    parts = (whole[i : i + width] for whole in text.split() for i in range(0, len(whole), max(width, 1)))
    for word in parts:
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append('')
        lines[-1] += ' ' * bool(lines[-1]) + word
    return '\n'.join(lines)


def _ink(colour: Colour) -> str:
    return '#' + ''.join(f'{round(255 * c):02x}' for c in colour)
