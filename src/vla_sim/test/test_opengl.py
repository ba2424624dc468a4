"""Without OpenGL what draws nothing runs, and what draws ends with one sentence."""

import os
import subprocess
import sys
from pathlib import Path

import domain_coordinator
import pytest

PROFILE = Path(__file__).parents[2] / 'vla_bringup/config/robots/sim_panda.yaml'
EPISODE = """
from pathlib import Path
from vla_core.motion.executor import ChunkExecutor
from vla_core.profile import RobotProfile
from vla_sim.expert import Expert
from vla_sim.rollout import ExpertDriver, run_episode
from vla_sim.world import World

world, profile = World('press_button'), RobotProfile.load(Path({profile!r}))
print('success', run_episode(world, ExpertDriver(Expert(profile)), ChunkExecutor(profile), 3).success)
from vla_sim.rendering.cameras import Cameras
try:
    Cameras(world.model, ('front',), 64)
except ValueError as error:
    print('refused', error)
"""
REMEDY = 'egl needs the libraries libegl1 libopengl0 libgl1-mesa-dri'


def run(*words, **environment):
    """Python with these words, where there is no screen."""
    nowhere = {'DISPLAY': '', 'WAYLAND_DISPLAY': '', 'PYTHONPATH': os.pathsep.join(p for p in sys.path if p)}
    return subprocess.run(
        [sys.executable, *words],
        env={**os.environ, **nowhere, **environment},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.mark.parametrize('platform', ['glfw', 'no such platform'])
def test_the_expert_does_its_task_and_a_camera_reports_what_is_missing(platform):
    done = run('-c', EPISODE.format(profile=str(PROFILE)), MUJOCO_GL=platform)
    assert done.returncode == 0, done.stderr
    succeeded, refused = done.stdout.splitlines()
    assert succeeded == 'success True'
    assert refused.startswith(f'refused MuJoCo cannot draw with MUJOCO_GL={platform}: ') and REMEDY in refused


def test_the_simulator_does_not_start_and_reports_why_in_one_line():
    with domain_coordinator.domain_id() as domain:
        words = ('-m', 'vla_sim.sim_node', '--ros-args', '--params-file', str(PROFILE), '-p', 'gl_backend:=glfw')
        done = run('-W', 'ignore', *words, MUJOCO_GL='egl', ROS_DOMAIN_ID=str(domain))
    assert done.returncode == 1
    assert done.stderr.startswith('cannot start: MuJoCo cannot draw with MUJOCO_GL=glfw: ') and REMEDY in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_expert_node_comes_up():
    made = "ExpertNode(cli_args=['--ros-args', '--params-file', sys.argv[1]])"
    code = f'import sys, rclpy; from vla_sim.expert_node import ExpertNode; rclpy.init(); print({made}.get_name())'
    with domain_coordinator.domain_id() as domain:
        done = run('-c', code, str(PROFILE), MUJOCO_GL='glfw', ROS_DOMAIN_ID=str(domain))
    assert done.stdout == 'expert\n', done.stderr
