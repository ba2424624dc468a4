"""What a released MolmoAct folder does not say of its robot: robot.json, and the meaning of its actions."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from vla_model.families.molmoact.grammar import check_template
from vla_model.families.molmoact.trace import centre_crop
from vla_model.families.rynnvla.constants import LIBERO_INPUT

FILE = 'robot.json'
SPACES = OSC, DELTA = ('osc_delta', 'ee_delta')
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
    crop: float = 1.0  # share of the area that is kept, in the middle; LIBERO's script keeps 0.9
    upside_down: bool = False  # pictures are turned by 180 degrees, as LIBERO's simulator needs it
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
        if self.template:
            check_template(self.template)

    def picture(self, image: np.ndarray) -> np.ndarray:
        """(h, w, 3) uint8 of a camera -> (h, w, 3) uint8 as it is given to the model."""
        if self.upside_down:
            image = image[::-1, ::-1]
        if self.side:
            resized = Image.fromarray(np.ascontiguousarray(image)).resize(
                (self.side, self.side), Image.Resampling.BILINEAR
            )
            image = np.asarray(resized)
        return image if self.crop == 1 else centre_crop(np.ascontiguousarray(image), self.crop)

    def set_points(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Actions (n, 7) in the units of training -> ((n, 6) in action_space, (n,) openings [m])."""
        arm, gripper = values[:, :-1], -np.sign(2 * values[:, -1] - 1)  # -1 open, +1 closed, as LIBERO reads it
        share = (gripper + 1) / 2
        opening = self.gripper_open + share * (self.gripper_closed - self.gripper_open)
        return (arm * LIBERO_INPUT if self.action_space == OSC else arm), opening
