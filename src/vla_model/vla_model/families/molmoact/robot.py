"""What a released MolmoAct folder does not say of its robot: robot.json, and the meaning of its actions."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from vla_model.families.molmoact import trace
from vla_model.families.molmoact.grammar import check_template
from vla_model.families.rynnvla.constants import LIBERO_INPUT
from vla_model.types import Trace

FILE = 'robot.json'
SPACES = OSC, DELTA = ('osc_delta', 'ee_delta')
RESIZES = BILINEAR, AREA = ('bilinear', 'area')
NUMBERS = 7  # of an action: translation, rotation vector, gripper


@dataclass(frozen=True)
class RobotFile:
    """The fields of robot.json."""

    cameras: tuple[str, ...]  # in prompt order; depth and trace are of the first
    dt: float  # [s] between two steps of a chunk
    actions: int  # of an answer: 8 for LIBERO's checkpoints, 1 for those before post-training
    action_space: str  # osc_delta: inputs of LIBERO's controller; ee_delta: [m] and a rotation vector [rad]
    gripper_open: float  # opening [m] that an answer above 0.5 stands for
    gripper_closed: float  # and one below
    statistics: str = ''  # the key of norm_stats; empty: the only one
    dof: int = 7  # joints of the arm
    side: int = 0  # [px] of the square that pictures become first; 0: they stay as they are
    resize: str = BILINEAR  # to that square; area: the mean of each pixel's area, as SimplerEnv's script does
    longest: int = (
        0  # [px] larger pictures are shrunk to this, as the public loader of fine-tuning does (336); 0: never
    )
    crop: float = 1.0  # share of the area that is kept, in the middle; LIBERO's script keeps 0.9
    upside_down: bool = False  # pictures are turned by 180 degrees, as LIBERO's simulator needs it
    line: int = trace.LINE  # [px] thickness of a drawn trace: 2 in training, 3 in the reference's steering interface
    reasoning_answers: int = 1  # answers in a row that have the same depth and trace; 1: each has its own
    reasoning_change: float = 0.1  # share of the 10 x 10 depth cells that may change before these are made again
    template: str = ''  # of the answer, where fine-tuning had another; empty: that of the model card

    def __post_init__(self) -> None:
        if not 1 <= len(self.cameras) <= 3 or len(set(self.cameras)) != len(self.cameras):
            raise ValueError(f'cameras must be one to three distinct names, got {list(self.cameras)}')
        if not 0 < self.dt < float('inf') or self.actions < 1 or self.dof < 1:
            raise ValueError(f'dt, actions and dof must be above 0, got {self.dt}, {self.actions}, {self.dof}')
        if self.action_space not in SPACES:
            raise ValueError(f'action_space must be one of {list(SPACES)}, got {self.action_space!r}')
        if self.statistics.startswith('libero') and self.action_space != OSC:
            raise ValueError(f'action_space of {self.statistics!r} must be {OSC!r}, got {self.action_space!r}')
        openings = self.gripper_open, self.gripper_closed
        if min(openings) < 0 or not np.isfinite(openings).all() or openings[0] == openings[1]:
            raise ValueError(f'gripper_open and gripper_closed must be two openings [m], got {list(openings)}')
        if self.side < 0 or not 0 < self.crop <= 1:
            raise ValueError(f'side must be 0 or more and crop above 0 and up to 1, got {self.side}, {self.crop}')
        if self.resize not in RESIZES or (self.resize == AREA and not self.side):
            raise ValueError(f'resize must be one of {list(RESIZES)}, and area needs side, got {self.resize!r}')
        if self.longest < 0 or not 1 <= self.line <= 32:
            raise ValueError(f'longest must be 0 or more and line 1 to 32, got {self.longest}, {self.line}')
        if self.reasoning_answers < 1 or not 0 <= self.reasoning_change <= 1:
            raise ValueError(
                'reasoning_answers must be 1 or more and reasoning_change 0 to 1, '
                f'got {self.reasoning_answers}, {self.reasoning_change}'
            )
        if self.template:
            check_template(self.template)

    def picture(self, image: np.ndarray, steering: Trace | None = None) -> np.ndarray:
        """Return (h, w, 3) uint8 as it is given to the model, of an image (h, w, 3) uint8 of a camera.

        steering: is drawn on it, of at most trace.MOST points; the size of its image may differ.
        """
        if self.upside_down:
            image = image[::-1, ::-1]
        if self.longest:
            image = trace.shrink(image, self.longest)
        if self.side and self.resize == AREA:
            image = trace.resize_area(image, self.side)
        elif self.side:
            resized = Image.fromarray(np.ascontiguousarray(image)).resize(
                (self.side, self.side), Image.Resampling.BILINEAR
            )
            image = np.asarray(resized)
        if steering is not None:
            points = self._turned(steering.points, steering.height, steering.width)
            places = trace.of_pixels(points, steering.height, steering.width)
            image = trace.draw(image, trace.to_pixels(places, *image.shape[:2]), self.line)
        return image if self.crop == 1 else trace.centre_crop(np.ascontiguousarray(image), self.crop)

    def in_image(self, points: np.ndarray, height: int, width: int) -> np.ndarray:
        """Return points (n, 2) of a predicted trace, 0..255, in the image of the camera [px].

        Training crops pictures and leaves the trace as it is: the crop is not taken into account.
        """
        pixels = np.asarray(points, np.float64) * [width - 1, height - 1] / trace.LARGEST
        return self._turned(pixels, height, width)

    def depth_in_image(self, depth: np.ndarray) -> np.ndarray:
        """Return a depth map (rows, columns) as the image of the camera has it."""
        return np.ascontiguousarray(depth[::-1, ::-1]) if self.upside_down else depth

    def _turned(self, points: np.ndarray, height: int, width: int) -> np.ndarray:
        return np.array([width - 1, height - 1]) - points if self.upside_down else np.asarray(points)

    def set_points(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Actions (n, 7) in the units of training -> ((n, 6) in action_space, (n,) openings [m])."""
        arm, gripper = values[:, :-1], -np.sign(2 * values[:, -1] - 1)  # -1 open, +1 closed, as LIBERO reads it
        share = (gripper + 1) / 2
        opening = self.gripper_open + share * (self.gripper_closed - self.gripper_open)
        return (arm * LIBERO_INPUT if self.action_space == OSC else arm), opening
