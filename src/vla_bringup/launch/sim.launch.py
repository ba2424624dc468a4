"""The simulated Franka with executor and policy: `ros2 launch vla_bringup sim.launch.py --show-args`."""

from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction

from vla_bringup.processes.launching import launch_actions, model_arguments, parameter_arguments
from vla_bringup.processes.nodes import policy_nodes, recorder_node, sim_nodes
from vla_bringup.processes.overrides import of_arguments
from vla_model.checkpoints.shipped import default_model
from vla_sim.tasks import TASKS

ARGUMENTS = [
    DeclareLaunchArgument(
        'namespace', default_value='', description='namespace of all nodes, e.g. /cell/arm; empty: none'
    ),
    DeclareLaunchArgument('task', default_value=TASKS[0], choices=list(TASKS), description='task of the first episode'),
    DeclareLaunchArgument(
        'seed', default_value='0', description='seed of layout, colours, camera and light of the first episode'
    ),
    DeclareLaunchArgument(
        'driver',
        default_value='expert',
        choices=['expert', 'policy', 'none'],
        description='source of the motion: the scripted expert (the policy runs in shadow), the policy, or none',
    ),
    DeclareLaunchArgument(
        'real_time_factor', default_value='1.0', description='simulated seconds per second; 0: as fast as possible'
    ),
    *model_arguments(default=default_model()),
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
    namespace, driver = value['namespace'], value['driver']
    parameters = of_arguments(value)
    specs = sim_nodes(
        namespace=namespace,
        task=value['task'],
        seed=int(value['seed']),
        real_time_factor=float(value['real_time_factor']),
        expert=driver == 'expert',
        params_file=parameters['params_file'],
    )
    specs += policy_nodes(
        'sim_panda',
        namespace=namespace,
        model=value['model'],
        device=value['device'],
        drive=driver == 'policy',
        use_sim_time=True,
        **parameters,
    )
    if value['record']:
        specs.append(
            recorder_node(
                'sim_panda',
                value['record'],
                namespace=namespace,
                use_sim_time=True,
                params_file=parameters['params_file'],
            )
        )
    return launch_actions(specs, autostart=value['autostart'] == 'true')


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription([*ARGUMENTS, OpaqueFunction(function=nodes)])
