"""A trace to follow as input of the masked model: tokens in the prompt, or a line on the first view."""

import numpy as np
from PIL import Image, ImageDraw

from vla_model.config import ModelConfig
from vla_model.observation import along, check_trace, squared
from vla_model.tokens.prompt import STEERING_POINTS
from vla_model.types import Observation

CYAN = (0, 255, 255)
WIDTH = 1 / 64  # of a line, relative to the longer side of the image


def apply(config: ModelConfig, observation: Observation) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """Return the images of the prompt, and the places (STEERING_POINTS, 2) of its trace in shares of the first view.

    The places are None without a trace, and where the trace is drawn on the image. Raises ValueError for a trace that
    the model cannot follow.
    """
    trace, camera = observation.steering, config.robot.cameras[0]
    if trace is None:
        return observation.images, None
    if not config.steering:
        raise ValueError(f'model {config.name} does not follow traces: clear the trace, or take another model')
    points = check_trace(trace, camera)
    if config.steering == 'tokens':
        return observation.images, squared(along(points, STEERING_POINTS), trace.height, trace.width)
    seen = observation.images.get(camera)
    if seen is None:
        return observation.images, None  # the missing camera is reported where images are checked
    scale = np.array([seen.shape[1] / trace.width, seen.shape[0] / trace.height])
    return {**observation.images, camera: line_on(seen, (points + 0.5) * scale - 0.5)}, None


def line_on(image: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return a copy of an image (height, width, 3) uint8 with a cyan line through points (n, 2) [px]."""
    picture = Image.fromarray(image)
    width = max(1, round(WIDTH * max(image.shape[:2])))
    ImageDraw.Draw(picture).line([(float(x), float(y)) for x, y in points], fill=CYAN, width=width, joint='curve')
    return np.asarray(picture)
