"""docs/images/show.jpg: what `show/trace_image` and `show/predicted_and_observed` look like, from the simulator.

Run it in the sourced workspace: .venv/bin/python scripts/show_pictures.py CHECKPOINT. The expert drives, the policy of
the checkpoint looks on; the picture is of the moment when the arm is on its way down to the first object.
"""

import argparse
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from PIL import Image

from vla_core.kinematics.arm import load_kinematics
from vla_core.kinematics.ik import quaternion_matrix
from vla_core.motion.chunk import StampedChunk
from vla_core.motion.executor import ChunkExecutor
from vla_core.observe.prediction_error import prediction_error
from vla_core.profile import RobotProfile, profile_path
from vla_model.loading import load
from vla_model.policy import IMAGE, finish
from vla_model.types import Observation
from vla_policy_node.show.camera import project
from vla_policy_node.show.pair import Pairing
from vla_policy_node.show.pictures import draw_trace, side_by_side
from vla_policy_node.show.tool_path import tool_path
from vla_sim.assets.robot import urdf_text
from vla_sim.expert import Expert
from vla_sim.rollout import TICK, ExpertDriver, run_episode
from vla_sim.world import World


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('checkpoint', type=Path)
    parser.add_argument('--task', default='stack_block')
    parser.add_argument('--seed', type=int, default=5)
    parser.add_argument('--at', type=float, default=1.2, help='[s] after the start of the episode')
    parser.add_argument('--out', type=Path, default=Path('docs/images/show.jpg'))
    a = parser.parse_args()
    profile, policy, world = RobotProfile.load(profile_path('sim_panda')), load(a.checkpoint), World(a.task)
    kinematics, cameras, info = load_kinematics(urdf_text(), profile), world.cameras(), policy.info
    horizon = round(info.horizon * info.dt * 1000 / TICK)
    taken: dict[str, np.ndarray] = {}
    ticks = iter(range(10**9))
    before = round(a.at * 1000 / TICK)

    def watch(world: World, subtask: str) -> None:
        tick = next(ticks)
        if tick == before:
            seen = Observation(
                world.time_ns,
                cameras.render(world.snapshot()),
                world.joint_positions,
                world.joint_velocities,
                world.gripper_opening,
                world.instruction,
            )
            taken['before'] = seen.images['front']
            taken['imagined'] = finish(policy.start(IMAGE, seen)).image
            chunk = policy.act(seen).chunk
            stamped = StampedChunk(
                seen.t_ref, 0, 1, 'policy', profile.joint_names, chunk.dt, len(chunk.positions), chunk.positions,
                chunk.gripper, confidence=chunk.confidence,
            )  # fmt: skip
            path = tool_path(stamped, profile, kinematics)
            points = np.vstack([kinematics(seen.positions)[0], path.positions])
            camera = world.camera_info('front')
            place, quaternion = world.camera_pose('front')
            info = SimpleNamespace(
                k=camera.matrix.ravel(), d=[], distortion_model='plumb_bob', binning_x=0, binning_y=0,
                roi=SimpleNamespace(x_offset=0, y_offset=0),
            )  # fmt: skip
            pixels, ahead = project((points - place) @ quaternion_matrix(quaternion), info)
            assert ahead.all()
            large = np.asarray(Image.fromarray(seen.images['front']).resize((368, 368), Image.Resampling.LANCZOS))
            taken['trace'] = draw_trace(large, (pixels + 0.5) * 368 / camera.width - 0.5, path.colours)
        if tick == before + horizon:
            taken['observed'] = cameras.render(world.snapshot(), ('front',))['front']

    run_episode(world, ExpertDriver(Expert(profile)), ChunkExecutor(profile), a.seed, time_limit=a.at + 3, watch=watch)
    value = prediction_error(taken['before'], taken['imagined'], taken['observed'])
    due = a.at + horizon * TICK * 1e-3
    pair = side_by_side(
        taken['imagined'],
        taken['observed'],
        f'imagined for {due:.2f} s',
        f'seen at {due:.2f} s',
        Pairing.verdict(1, (1, value)),
    )
    gap = np.full((pair.shape[0], 12, 3), 255, np.uint8)
    page = Image.fromarray(np.concatenate([taken['trace'], gap, pair], 1))
    page.save(a.out, quality=88)
    print(f'{a.out}: {page.width} x {page.height}, prediction error {value:.2f}')


if __name__ == '__main__':
    main()
