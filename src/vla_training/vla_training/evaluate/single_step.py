"""Compares single chunks of a policy with the expert's (single-step evaluation), in minutes instead of hours.

A successful episode may have had a lucky layout. Here the arm is put at a start pose, and the policy predicts one
chunk. The tool's pose at its end is compared with the expert's.
"""

from collections.abc import Iterator

import numpy as np
from rich.console import Console
from rich.progress import Progress

from vla_core.profile import RobotProfile
from vla_model.policy import Policy
from vla_model.types import Observation
from vla_sim.expert import Expert
from vla_sim.kinematics import IKError
from vla_sim.tasks import TASKS, parse_instruction, task_of
from vla_sim.tasks.placing import GRIPS
from vla_sim.tasks.skill import wrap
from vla_sim.world import World
from vla_training.collect.scenes import HELD_OUT, StartPose, randomise_start
from vla_training.collect.static_scenes import first_path, label_actions, labelling_expert
from vla_training.evaluate.offline import Sums

FIRST_SEED = HELD_OUT + 500_000
GRASPED = tuple(task for task in TASKS if task_of(task).target_kind)
STARTS = {'anywhere': (StartPose(share=1.0), TASKS), 'near the object': (StartPose.near_object(), GRASPED)}


def evaluate_single_step(
    policy: Policy, profile: RobotProfile, scenes: int, console: Console | None = None
) -> dict[str, float | int]:
    """Return measures by name, means over `scenes` held-out scenes of each task and kind of start pose.

    Errors are between the policy's and the expert's tool at the end of a chunk: distance [mm], and angle about the
    vertical [deg] for objects with a direction. Half a turn counts as zero, for a block a quarter. 'Standing still' is
    a policy that does not move.
    """
    info = policy.info
    expert, sums, count = labelling_expert(profile, info), Sums(), 0
    with Progress(console=console, transient=True) as bar:
        total = sum(scenes * len(tasks) for _, tasks in STARTS.values())
        line = bar.add_task('single-step evaluation', total=total)
        for start, world, seen in _observations(expert, scenes):
            bar.advance(line)
            try:
                path = first_path(expert, world, seen.instruction)
                wanted = label_actions(path, world.joint_positions, info.horizon)[-1, : info.dof]
            except IKError:  # out of the expert's reach
                continue
            predicted = policy.act(seen).chunk.positions[-1]
            tools = [expert.kinematics.forward(q) for q in (wanted, predicted, seen.positions)]
            _add(sums, start, seen.instruction, tools)
            count += 1
    return {'scenes': count, **sums.means()}


def _observations(expert: Expert, scenes: int) -> Iterator[tuple[str, World, Observation]]:
    """Yield (kind of start pose, scene, observation) for each scene."""
    for name, (start, tasks) in STARTS.items():
        for task in tasks:
            world = World(task)
            cameras = world.cameras()
            for seed in range(FIRST_SEED, FIRST_SEED + scenes):
                world.reset(seed)
                randomise_start(world, expert, start, np.random.default_rng([seed, 3]))
                yield (
                    name,
                    world,
                    Observation(
                        t_ref=world.time_ns,
                        images=cameras.render(world.snapshot()),
                        positions=world.joint_positions,
                        velocities=world.joint_velocities,
                        gripper=world.gripper_opening,
                        instruction=world.instruction,
                    ),
                )
            cameras.close()


def _add(sums: Sums, start: str, instruction: str, tools: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """Add the errors of one scene. tools: (position, rotation) of the expert's, the policy's and the present tool."""
    name = parse_instruction(instruction).object
    kind = 'block' if name.endswith('_block') else name
    places = [place for place, _ in tools]
    yaws = [np.arctan2(rotation[1, 0], rotation[0, 0]) for _, rotation in tools]
    for i, label in ((1, ''), (2, ', standing still')):
        sums.add(f'{start}: tool error{label} [mm]', 1e3 * float(np.linalg.norm(places[i] - places[0])))
        if grips := GRIPS.get(kind):
            turn = abs(wrap(yaws[i] - yaws[0], 2 * np.pi / (2 * grips)))
            objects = 'blocks' if kind == 'block' else 'long objects'
            sums.add(f'{start}: yaw error of {objects}{label} [deg]', float(np.degrees(turn)))
