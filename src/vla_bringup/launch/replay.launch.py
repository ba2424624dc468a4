"""A bag into the live policy node, in shadow: `ros2 launch vla_bringup replay.launch.py bag:=FOLDER --show-args`.

`ros2 bag play` is paused until the policy node is active. It plays cameras, joints and instructions of the bag under
the topic names of these nodes, without the recorded outputs of the policy. The policy runs on the clock of the bag.
There is no executor, so the arm does not move. RViz shows the replay. `./vla replay` makes a report and reproducible
chunks.
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
        'namespace', default_value='', description='namespace of the topics in the bag, e.g. /cell/arm; empty: none'
    ),
    DeclareLaunchArgument(
        'instruction', default_value='', description='instruction for the policy; empty: the instructions in the bag'
    ),
    *model_arguments(),
    DeclareLaunchArgument(
        'engine',
        default_value='',
        description='engine of the model: auto, eager, ...; empty: the value of the parameter files',
    ),
    DeclareLaunchArgument(
        'threads', default_value='', description='CPU threads of the model; empty: the value of the parameter files'
    ),
    DeclareLaunchArgument(
        'seed',
        default_value='',
        description='seed of the random draws of the model; empty: the value of the parameter files',
    ),
    DeclareLaunchArgument('rate', default_value='1.0', description='pace of the bag; 0.5 is half as fast as recorded'),
    DeclareLaunchArgument('start_offset', default_value='0.0', description='time skipped at the start of the bag [s]'),
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
    folder = Path(tempfile.mkdtemp(prefix='vla_replay_'))  # for the files of player and policy
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
    """Return the parameters of the policy that depend on the bag."""
    found: dict[str, Any] = {
        'inpaint': 'never'
    }  # the arm in the bag does not follow these chunks: no action is committed
    if plan.compressed:
        found |= {'cameras': list(plan.cameras), 'camera_topics': list(plan.cameras.values())}
    if plan.description:  # the policy needs it before the player starts
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
