"""What a policy does about scenes that it is shown once, next to what the expert does: minutes, not hours, and no luck.

An episode that succeeds may have been lucky with how a thing lay. Here the arm is put somewhere, the policy says one
chunk, and where its tool is at the end of that is compared with where the expert's is.
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
from vla_training.collect.scenes import HELD_OUT, Away, begin_away
from vla_training.collect.static_scenes import answer, answering
from vla_training.evaluate.offline import Sums

FIRST_SEED = HELD_OUT + 500_000  # of scenes that are only looked at
GRASPED = tuple(task for task in TASKS if task_of(task).target_kind)
WHERE = {'anywhere': (Away(share=1.0), TASKS), 'close over it': (Away.over(), GRASPED)}


def single_looks(
    policy: Policy, profile: RobotProfile, scenes: int, console: Console | None = None
) -> dict[str, float | int]:
    """Measures by name, means over `scenes` held-out scenes of each task and place of the arm.

    Off the expert: of the tool at the end of a chunk, [mm] and, where the hand has to lie along a thing, [deg] about
    the vertical; half a turn more is as good (of a block: a quarter). 'Staying' is a policy that does nothing.
    """
    info = policy.info
    expert, sums, count = answering(profile, info), Sums(), 0
    with Progress(console=console, transient=True) as bar:
        line = bar.add_task('single looks', total=sum(scenes * len(tasks) for _, tasks in WHERE.values()))
        for where, world, seen in _shown(expert, scenes):
            bar.advance(line)
            try:
                wanted = answer(expert, world, seen.instruction, info.horizon)[-1, : info.dof]
            except IKError:  # out of the expert's reach
                continue
            said = policy.act(seen).chunk.positions[-1]
            _add(sums, where, seen.instruction, [expert.kinematics.forward(q) for q in (wanted, said, seen.positions)])
            count += 1
    return {'looks': count, **sums.means()}


def _shown(expert: Expert, scenes: int) -> Iterator[tuple[str, World, Observation]]:
    """(where the arm is, the scene, what is seen)"""
    for where, (away, tasks) in WHERE.items():
        for task in tasks:
            world = World(task)
            cameras = world.cameras()
            for seed in range(FIRST_SEED, FIRST_SEED + scenes):
                world.reset(seed)
                begin_away(world, expert, away, np.random.default_rng([seed, 3]))
                yield (
                    where,
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


def _add(sums: Sums, where: str, instruction: str, tools: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """tools: poses of the tool, as wanted, as the policy has it, and as it was."""
    thing = parse_instruction(instruction).object
    kind = 'block' if thing.endswith('_block') else thing
    places = [place for place, _ in tools]
    yaws = [np.arctan2(rotation[1, 0], rotation[0, 0]) for _, rotation in tools]
    for i, who in ((1, ''), (2, ', staying')):
        sums.add(f'{where}: off the expert{who} [mm]', 1e3 * float(np.linalg.norm(places[i] - places[0])))
        if grips := GRIPS.get(kind):
            turn = abs(wrap(yaws[i] - yaws[0], 2 * np.pi / (2 * grips)))
            what = 'blocks' if kind == 'block' else 'long things'
            sums.add(f'{where}: {what}, turned off the expert{who} [deg]', float(np.degrees(turn)))
