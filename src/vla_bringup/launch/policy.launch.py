"""Executor and policy beside a real robot: `ros2 launch vla_bringup policy.launch.py --show-args`.

The robot's drivers, its controller (crisp_controllers) and the cameras run already: the robot profile names their
topics.
"""

from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction

from vla_bringup.processes.launching import launch_actions, model_arguments, parameter_arguments
from vla_bringup.processes.nodes import policy_nodes, recorder_node
from vla_bringup.processes.overrides import of_arguments
from vla_core.profile import profile_names

ARGUMENTS = [
    DeclareLaunchArgument(
        'robot',
        default_value='fr3',
        description=f'robot profile: the path of a file, or one of {", ".join(profile_names())}',
    ),
    DeclareLaunchArgument(
        'nodes',
        default_value='both',
        choices=['both', 'policy', 'executor'],
        description='nodes on this machine: the executor belongs on the machine of the arm, the policy on the one with '
        'the GPU',
    ),
    DeclareLaunchArgument(
        'namespace', default_value='', description='namespace of all nodes, e.g. /cell/arm; empty: none'
    ),
    *model_arguments(),
    DeclareLaunchArgument(
        'drive',
        default_value='false',
        choices=['true', 'false'],
        description='true: the policy moves the arm; false: shadow, chunks are published and never executed',
    ),
    DeclareLaunchArgument(
        'use_sim_time', default_value='false', choices=['true', 'false'], description='take time from /clock'
    ),
    DeclareLaunchArgument('record', default_value='', description='folder of a rosbag2 to write; empty: none'),
    DeclareLaunchArgument(
        'autostart',
        default_value='true',
        choices=['true', 'false'],
        description='configure and activate executor and policy',
    ),
    *parameter_arguments(),
]


def nodes(context: LaunchContext) -> list:
    value = context.launch_configurations
    robot, namespace, use_sim_time = value['robot'], value['namespace'], value['use_sim_time'] == 'true'
    parameters = of_arguments(value)
    specs = policy_nodes(
        robot,
        namespace=namespace,
        model=value['model'],
        device=value['device'],
        drive=value['drive'] == 'true',
        use_sim_time=use_sim_time,
        **parameters,
    )
    executor = specs[0]
    if value['nodes'] != 'both':
        specs = [spec for spec in specs if spec.name == value['nodes']]
    if value['record']:
        specs.append(
            recorder_node(
                robot,
                value['record'],
                namespace=namespace,
                use_sim_time=use_sim_time,
                params_file=parameters['params_file'],
                executor=executor,
            )
        )
    return launch_actions(specs, autostart=value['autostart'] == 'true')


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription([*ARGUMENTS, OpaqueFunction(function=nodes)])
