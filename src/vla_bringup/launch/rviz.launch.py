"""RViz on a running robot or simulator: `ros2 launch vla_bringup rviz.launch.py --show-args`.

It may run on another machine than the policy. docs/how-to/see-in-rviz.md describes the displays.
"""

from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction, Shutdown
from launch_ros.actions import Node

from vla_bringup.processes.launching import launch_actions, parameter_arguments
from vla_bringup.processes.nodes import OWN, on_its_own, rviz_path, show_node

ARGUMENTS = [
    DeclareLaunchArgument(
        'robot', default_value='sim_panda', description='robot profile, also for the RViz configuration'
    ),
    DeclareLaunchArgument(
        'config', default_value='', description='another RViz configuration: a .rviz file; empty: that of the robot'
    ),
    DeclareLaunchArgument(
        'namespace', default_value='', description='namespace of the policy, e.g. /cell/arm; empty: none'
    ),
    DeclareLaunchArgument(
        'own_clock',
        default_value='false',
        choices=['true', 'false'],
        description='true: clock and transforms are in the namespace, as those of two_arms.launch.py',
    ),
    DeclareLaunchArgument(
        'show',
        default_value='true',
        choices=['true', 'false'],
        description='start the node show, which draws the policy; false: it runs elsewhere',
    ),
    DeclareLaunchArgument(
        'use_sim_time',
        default_value='auto',
        choices=['true', 'false', 'auto'],
        description='take time from /clock; auto: with robot:=sim_panda',
    ),
    *parameter_arguments('params_file'),
]


def nodes(context: LaunchContext) -> list:
    value = context.launch_configurations
    robot, namespace = value['robot'], value['namespace']
    use_sim_time = robot == 'sim_panda' if value['use_sim_time'] == 'auto' else value['use_sim_time'] == 'true'
    own_clock = value['own_clock'] == 'true'
    # RViz's topics are relative: the namespace makes them those of this arm.
    rviz = Node(
        package='rviz2',
        executable='rviz2',
        name='rviz',
        namespace=namespace,
        arguments=['-d', rviz_path(value['config'] or robot)],
        parameters=[{'use_sim_time': use_sim_time}],
        remappings=OWN if own_clock else (),
        output='screen',
        on_exit=Shutdown(reason='RViz was closed'),
    )
    if value['show'] == 'false':
        return [rviz]
    show = show_node(robot, namespace=namespace, use_sim_time=use_sim_time, params_file=value['params_file'])
    return [rviz, *launch_actions([on_its_own(show) if own_clock else show])]


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription([*ARGUMENTS, OpaqueFunction(function=nodes)])
