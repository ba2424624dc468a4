"""Drive the simulated arm through a task without ROS. Run it in `./vla shell`: python examples/drive_simulator.py"""

import sys

from vla_core.motion.executor import ChunkExecutor
from vla_core.profile import RobotProfile, profile_path
from vla_sim.expert import Expert
from vla_sim.rollout import ExpertDriver, run_episode
from vla_sim.tasks import TASKS
from vla_sim.world import World

task = sys.argv[1] if len(sys.argv) > 1 else TASKS[0]
profile = RobotProfile.load(profile_path('sim_panda'))
world = World(task)
# The executor keeps the limits of the profile; a model drives through PolicyDriver in the same way.
result = run_episode(world, ExpertDriver(Expert(profile)), ChunkExecutor(profile), seed=1)
print(world.instruction)
print('success' if result.success else f'missed: {result.missed}', f'after {result.duration:.1f} s')
print(f'fastest joint: {result.peak_speed:.2f} of its limit')
