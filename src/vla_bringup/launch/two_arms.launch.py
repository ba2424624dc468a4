"""Two arms, each in a namespace with an executor and a policy of its own: an example to copy.

`ros2 launch vla_bringup two_arms.launch.py --show-args`. By default both are simulated, each on a clock of its own;
with simulated:=false two robots run already in these namespaces. The arms do not avoid each other: where they can meet,
give each executor a workspace (collision_monitor.planes) outside that of the other.
"""

from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction

from vla_bringup.processes.launching import launch_actions, model_arguments, parameter_arguments
from vla_bringup.processes.nodes import on_its_own, policy_nodes, recorder_node, sim_nodes
from vla_bringup.processes.overrides import of_arguments
from vla_core.observe.cadence import RATE
from vla_core.profile import profile_names
from vla_sim.tasks import TASKS

PROFILES = f'robot profile: the path of a file, or one of {", ".join(profile_names())}'
SIDES = ('left', 'right')
ARGUMENTS = [
    DeclareLaunchArgument(
        'simulated',
        default_value='true',
        choices=['true', 'false'],
        description='true: two simulators; false: robots, controllers and cameras run already',
    ),
    *(
        DeclareLaunchArgument(f'{side}_{name}', default_value=default, description=f'{side} arm: {about}')
        for side, task in zip(SIDES, TASKS, strict=False)
        for name, default, about in (
            ('namespace', f'/{side}', 'namespace of its nodes'),
            ('robot', 'sim_panda', PROFILES),
            ('task', task, f'task of the simulated episode: {", ".join(TASKS)}'),
        )
    ),
    *(
        argument
        for side in SIDES
        for make in (model_arguments, parameter_arguments)
        for argument in make(prefix=f'{side}_', about=f'{side} arm: ')
    ),
    DeclareLaunchArgument(
        'driver',
        default_value='expert',
        choices=['expert', 'policy', 'none'],
        description='source of the motion: the scripted experts (simulated arms only; the policies run in shadow), the '
        'policies, or none',
    ),
    DeclareLaunchArgument(
        'rate',
        default_value='',
        description=f'highest rate of inferences of each policy [Hz]; empty: the value of the files, else {RATE:g}',
    ),
    DeclareLaunchArgument(
        'record', default_value='', description='folder for two rosbag2, left/ and right/; empty: none'
    ),
    DeclareLaunchArgument(
        'autostart', default_value='true', choices=['true', 'false'], description='configure and activate all nodes'
    ),
]


def nodes(context: LaunchContext) -> list:
    value = context.launch_configurations
    simulated, driver = value['simulated'] == 'true', value['driver']
    if driver == 'expert' and not simulated:
        raise ValueError('the experts drive simulated arms only: give driver:=policy or driver:=none')
    specs = []
    for side in SIDES:
        robot, namespace = value[f'{side}_robot'], value[f'{side}_namespace']
        parameters = of_arguments(value, f'{side}_')
        arm = policy_nodes(
            robot,
            namespace=namespace,
            model=value[f'{side}_model'],
            device=value[f'{side}_device'],
            drive=driver == 'policy',
            rate=float(value['rate'] or 0.0),
            use_sim_time=simulated,
            **parameters,
        )
        if simulated:
            task, expert, file = value[f'{side}_task'], driver == 'expert', parameters['params_file']
            arm = sim_nodes(robot, namespace=namespace, task=task, expert=expert, params_file=file) + arm
        if value['record']:
            bag = f'{value["record"]}/{side}'
            arm.append(
                recorder_node(
                    robot, bag, namespace=namespace, use_sim_time=simulated, params_file=parameters['params_file']
                )
            )
        specs += [on_its_own(spec) for spec in arm] if simulated else arm
    return launch_actions(specs, autostart=value['autostart'] == 'true')


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription([*ARGUMENTS, OpaqueFunction(function=nodes)])
