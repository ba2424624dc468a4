"""Two arms, each in a namespace with an executor and a policy of its own: an example to copy.

`ros2 launch vla_bringup two_arms.launch.py --show-args`. By default both are simulated, each on a clock of its own;
with simulated:=false two robots run already in these namespaces. The arms know nothing of one another: where they can
meet, give each executor a workspace (guard.planes) that the other stays out of.
"""

from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction

from vla_bringup.launching import launch_actions
from vla_bringup.nodes import on_its_own, policy_nodes, recorder_node, sim_nodes
from vla_policy_node.core.profile import profile_names
from vla_policy_node.observe.cadence import RATE
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
            ('namespace', f'/{side}', 'namespace of all its nodes'),
            ('robot', 'sim_panda', PROFILES),
            ('model', 'random-nano', 'random-nano, or a checkpoint folder'),
            ('device', 'cpu', 'torch device of the model: cpu, cuda, cuda:1'),
            ('task', task, f'of the simulated episode: {", ".join(TASKS)}'),
        )
    ),
    DeclareLaunchArgument(
        'driver',
        default_value='expert',
        choices=['expert', 'policy', 'none'],
        description='who moves the arms: the scripted experts (simulated arms only; the policies run in shadow), the '
        'policies, or nobody',
    ),
    DeclareLaunchArgument(
        'rate', default_value=str(RATE), description='most inferences per second of each policy [Hz]'
    ),
    DeclareLaunchArgument(
        'record', default_value='', description='folder in which left/ and right/ become a rosbag2 each; empty: none'
    ),
    DeclareLaunchArgument(
        'autostart', default_value='true', choices=['true', 'false'], description='configure and activate all'
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
        arm = policy_nodes(
            robot,
            namespace=namespace,
            model=value[f'{side}_model'],
            device=value[f'{side}_device'],
            drive=driver == 'policy',
            rate=float(value['rate']),
            use_sim_time=simulated,
        )
        if simulated:
            arm = sim_nodes(robot, namespace=namespace, task=value[f'{side}_task'], expert=driver == 'expert') + arm
        if value['record']:
            bag = f'{value["record"]}/{side}'
            arm.append(recorder_node(robot, bag, namespace=namespace, use_sim_time=simulated))
        specs += [on_its_own(spec) for spec in arm] if simulated else arm
    return launch_actions(specs, autostart=value['autostart'] == 'true')


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription([*ARGUMENTS, OpaqueFunction(function=nodes)])
