"""A bag into the live policy node, in shadow: `ros2 launch vla_bringup replay.launch.py bag:=FOLDER --show-args`.

`ros2 bag play` waits, paused, until the model is loaded and the policy node is active. It plays the cameras, joints and
instructions of the bag under the names that the nodes here have, and nothing that would come beside their outputs; the
policy runs on that clock. No executor, so nothing moves. Look at it with RViz. For a report, and for chunks that are
the same each time, there is `./vla replay`.
"""

import tempfile
from pathlib import Path
from typing import Any

from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, ExecuteProcess, LogInfo, OpaqueFunction

from vla_bringup.processes.launching import launch_actions, model_arguments, parameter_arguments
from vla_bringup.processes.nodes import policy_nodes
from vla_bringup.processes.overrides import of_arguments, of_text
from vla_bringup.replay.launch_player import failed, give_latched, over, resume
from vla_bringup.replay.player import playback
from vla_core.profile import profile_names

SETTINGS = ('engine', 'threads', 'seed')  # arguments that are parameters of the policy
ARGUMENTS = [
    DeclareLaunchArgument('bag', description='rosbag2 to play: a folder, or one .mcap or .db3 file'),
    DeclareLaunchArgument(
        'robot',
        default_value='sim_panda',
        description=f'robot profile that names the topics: the path of a file, or one of {", ".join(profile_names())}',
    ),
    DeclareLaunchArgument(
        'namespace', default_value='', description='of the topics in the bag, e.g. /cell/arm; empty: none'
    ),
    DeclareLaunchArgument(
        'instruction', default_value='', description='for the policy, in place of those in the bag; empty: as the bag'
    ),
    *model_arguments(),
    DeclareLaunchArgument(
        'engine',
        default_value='',
        description='that runs the model: auto, eager, ...; empty: as the parameters have it',
    ),
    DeclareLaunchArgument(
        'threads', default_value='', description='of the processor for the model; empty: as the parameters have it'
    ),
    DeclareLaunchArgument(
        'seed', default_value='', description='of what the model draws at random; empty: as the parameters have it'
    ),
    DeclareLaunchArgument('rate', default_value='1.0', description='pace of the bag; 0.5 is half as fast as recorded'),
    DeclareLaunchArgument(
        'start_offset', default_value='0.0', description='seconds of the bag to leave out at its beginning'
    ),
    *parameter_arguments('params_file', 'policy_parameters'),
]


def nodes(context: LaunchContext) -> list:
    value = context.launch_configurations
    robot, namespace = value['robot'], value['namespace']
    plan = playback(
        Path(value['bag']),
        robot,
        namespace,
        instruction=value['instruction'],
        offset=_number(value, 'start_offset'),
        rate=_number(value, 'rate'),
    )
    folder = Path(tempfile.mkdtemp(prefix='vla_replay_'))  # the player and the policy read their files there
    parameters = of_arguments(value)
    given = parameters['policy_parameters']
    parameters['policy_parameters'] = _of_bag(plan, folder) | given | _settings(value, given)
    _, policy = policy_nodes(
        robot, namespace=namespace, model=value['model'], device=value['device'], use_sim_time=True, **parameters
    )
    play = ExecuteProcess(
        cmd=plan.command(plan.write_qos(folder / 'qos.yaml'), paused=True),
        output='screen',
        on_exit=over,
    )
    when = {
        'active': [OpaqueFunction(function=resume, args=[plan])],
        'unconfigured': [OpaqueFunction(function=failed)],
    }
    words = [] if plan.instruction else [LogInfo(msg='the bag has no instruction: give instruction:="..."')]
    return [*words, OpaqueFunction(function=give_latched, args=[plan]), *launch_actions([policy], when=when), play]


def _number(value: dict[str, str], name: str) -> float:
    try:
        return float(value[name])
    except ValueError:
        raise ValueError(f'{name} is {value[name]!r}: must be a number') from None


def _of_bag(plan: Any, folder: Path) -> dict[str, Any]:
    """Parameters of the policy that the bag decides."""
    found: dict[str, Any] = {'inpaint': 'never'}  # the arm in the bag does not follow these chunks: none is under way
    if plan.compressed:
        found |= {'cameras': list(plan.cameras), 'camera_topics': list(plan.cameras.values())}
    if plan.description:  # it is wanted before the player plays anything
        urdf = folder / 'robot.urdf'
        urdf.write_text(plan.description)
        found['robot_description_file'] = str(urdf)
    return found


def _settings(value: dict[str, str], given: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in SETTINGS:
        if value[name]:
            found |= of_text(f'{{{name}: {value[name]}}}', 'policy', name)
            if given.get(name, found[name]) != found[name]:
                raise ValueError(f'{name} and policy_parameters give two values of {name}: leave one out')
    return found


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription([*ARGUMENTS, OpaqueFunction(function=nodes)])
