"""A bag into the live policy node, in shadow: `ros2 launch vla_bringup replay.launch.py bag:=FOLDER --show-args`.

`ros2 bag play --clock` plays the cameras, joints and instructions of the bag and nothing else, and the policy node runs
on that clock; no executor, so nothing moves. Look at it with RViz. For a report, and for chunks that are the same each
time, there is `./vla replay`.
"""

from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, ExecuteProcess, OpaqueFunction, Shutdown

from vla_bringup.launching import launch_actions, model_arguments, parameter_arguments
from vla_bringup.nodes import policy_nodes
from vla_bringup.overrides import of_arguments
from vla_bringup.replay_feed import played_topics
from vla_policy_node.core.profile import profile_names

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
    *model_arguments(),
    DeclareLaunchArgument('rate', default_value='1.0', description='pace of the bag; 0.5 is half as fast as recorded'),
    *parameter_arguments('params_file', 'policy_parameters'),
]


def nodes(context: LaunchContext) -> list:
    value = context.launch_configurations
    robot, namespace = value['robot'], value['namespace']
    parameters = of_arguments(value)
    # The arm in the bag does not follow these chunks, so none is under way.
    parameters['policy_parameters'] = {'inpaint': 'never', **parameters['policy_parameters']}
    _, policy = policy_nodes(
        robot, namespace=namespace, model=value['model'], device=value['device'], use_sim_time=True, **parameters
    )
    play = ExecuteProcess(
        cmd=['ros2', 'bag', 'play', value['bag'], '--clock', '100', '--rate', value['rate'],
             '--delay', '5', '--topics', *played_topics(robot, namespace)],
        output='screen',
        on_exit=[Shutdown(reason='the bag is over')],
    )  # fmt: skip
    return [*launch_actions([policy]), play]


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription([*ARGUMENTS, OpaqueFunction(function=nodes)])
