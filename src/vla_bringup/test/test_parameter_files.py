"""Every parameter file that the suite ships or writes is read by rcl, and names what its controllers declare.

PyYAML reads more than rcl: aliases, for one, which end ros2_control_node before it starts.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import vla_model
from vla_bringup.processes.franka_arm import franka_nodes
from vla_bringup.processes.nodes import policy_nodes, recorder_node, share, show_node, sim_nodes
from vla_bringup.processes.overrides import of_file
from vla_core.parameter_file import parameter_file, parse
from vla_core.profile import RobotProfile, profile_names

CONTROLLER_FILES = sorted(share('config', 'controllers').glob('*.yaml'))
SHIPPED = [
    *CONTROLLER_FILES,
    *sorted(share('config', 'robots').glob('*.yaml')),
    Path(vla_model.__file__).parent / 'data' / 'nano' / 'robot_profile.yaml',
]
READER = """
import sys, rclpy
for path in sys.argv[1:]:
    context = rclpy.Context()
    try:
        rclpy.init(args=['--ros-args', '--params-file', path], context=context)
    except Exception as error:
        print(path, str(error).replace(chr(10), ' '))
    else:
        rclpy.shutdown(context=context)
"""


def refused(*paths):
    """What rcl has against these files, a line each."""
    words = [sys.executable, '-c', READER, *map(str, paths)]
    return subprocess.run(words, check=True, capture_output=True, text=True, timeout=60).stdout


def test_rcl_reads_every_shipped_parameter_file():
    assert len(SHIPPED) >= 5
    assert refused(*SHIPPED) == ''


def test_rcl_reads_the_parameter_files_of_the_docs(tmp_path):
    root = Path(__file__).resolve().parents[3]
    pages = [root / 'README.md', *sorted((root / 'docs').rglob('*.md'))]
    blocks = [b for page in pages for b in re.findall(r'```yaml\n(.*?)```', page.read_text(), re.S)]
    paths = [tmp_path / f'{i}.yaml' for i, block in enumerate(blocks) if 'ros__parameters' in block]
    for path in paths:
        path.write_text(blocks[int(path.stem)])
    assert refused(*paths) == ''


def test_rcl_reads_what_a_launch_writes(tmp_path):
    names = ['y', '1e3', 'on', 'a: b', '"x"', 'é', '']
    mine = tmp_path / 'mine.yaml'  # PyYAML reads the alias, and hands the same list on twice
    mine.write_text(
        '/**: {ros__parameters: {robot: {acceleration: &a [5.0, 5.0, 5.0, 5.0, 5.0, 5.0, 5.0], jerk: *a}}}\n'
    )
    specs = [*sim_nodes(), show_node('fr3'), recorder_node('fr3', '/bags/y')]
    for robot in profile_names():
        specs += policy_nodes(robot, params_file=str(mine), policy_parameters={'cameras': ['y', 'n']})
    for gripper in ('franka', 'none'):
        specs += franka_nodes('fr3', controller='joint_trajectory', gripper=gripper, fake=True)
    paths = []
    for i, spec in enumerate(specs):
        (folder := tmp_path / str(i)).mkdir()
        paths.append(spec.write_parameters(folder))
        assert parse(paths[-1].read_text()) == {'/**': {'ros__parameters': spec.parameters}}
    paths.append(tmp_path / 'words.yaml')
    paths[-1].write_text(parameter_file({f'p{i}': name for i, name in enumerate(names)} | {'names': names}))
    assert refused(*paths) == ''


def test_a_node_that_stands_twice_in_a_file_has_the_parameters_of_both_places(tmp_path):
    """As rcl reads it: PyYAML would drop the first mapping, and with it the lower speed."""
    (path := tmp_path / 'twice.yaml').write_text(
        '/**: {ros__parameters: {velocity_fraction: 0.2, rate: 50.0}}\n/**: {ros__parameters: {rate: 200.0}}\n'
    )
    assert of_file(str(path), 'executor', '') == {'velocity_fraction': 0.2, 'rate': 200.0}


# What the controllers declare: plugin -> type -> names, * for a joint. Read from the parameter declarations of
# ros2_control 4.46.0, ros2_controllers 4.42.1, crisp_controllers of 2025-08-19, franka_ros2 3.4.0.
DECLARED = {
    'joint_trajectory_controller/JointTrajectoryController': {
        list[str]: 'joints command_joints command_interfaces state_interfaces',
        float: 'speed_scaling.initial_scaling_factor action_monitor_rate cmd_timeout gains.*.p gains.*.i gains.*.d '
        'gains.*.i_clamp_max gains.*.i_clamp_min gains.*.ff_velocity_scale gains.*.u_clamp_max gains.*.u_clamp_min '
        'gains.*.tracking_time_constant gains.*.error_deadband constraints.stopped_velocity_tolerance '
        'constraints.goal_time constraints.*.trajectory constraints.*.goal constraints.*.max_deceleration_on_cancel',
        str: 'speed_scaling.state_interface speed_scaling.command_interface interpolation_method '
        'gains.*.antiwindup_strategy',
        bool: 'allow_partial_joints_goal interpolate_from_desired_state allow_integration_in_goal_trajectories '
        'set_last_command_interface_value_as_state_on_activation allow_nonzero_velocity_at_trajectory_end '
        'constraints.decelerate_on_cancel',
    },  # without i_clamp and open_loop_control, which are deprecated
    'forward_command_controller/ForwardCommandController': {list[str]: 'joints', str: 'interface_name'},
    'joint_state_broadcaster/JointStateBroadcaster': {
        bool: 'use_local_topics use_urdf_to_filter publish_dynamic_joint_states',
        list[str]: 'joints extra_joints interfaces',
        str: 'map_interface_to_joint_state.position map_interface_to_joint_state.velocity '
        'map_interface_to_joint_state.effort frame_id',
    },
    'crisp_controllers/CartesianController': {
        list[str]: 'joints',
        str: 'end_effector_frame base_frame nullspace.projector_type',
        bool: 'use_operational_space noise.add_random_noise use_friction use_coriolis_compensation '
        'use_gravity_compensation use_local_jacobian log.enabled log.robot_state log.control_values log.limits '
        'log.controller_parameters log.computed_torques log.dynamic_params log.timing limit_error limit_torques '
        'stop_commands',
        float: 'task.k_pos_x task.d_pos_x task.k_pos_y task.d_pos_y task.k_pos_z task.d_pos_z task.k_rot_x '
        'task.d_rot_x task.k_rot_y task.d_rot_y task.k_rot_z task.d_rot_z task.error_clip.x task.error_clip.y '
        'task.error_clip.z task.error_clip.rx task.error_clip.ry task.error_clip.rz nullspace.stiffness '
        'nullspace.damping nullspace.weights.*.value nullspace.regularization nullspace.max_tau noise.amplitude '
        'filter.target_pose filter.q filter.dq filter.output_torque max_delta_tau',
        list[float]: 'friction.fp1 friction.fp2 friction.fp3',
    },
    'franka_robot_state_broadcaster/FrankaRobotStateBroadcaster': {
        str: 'robot_type arm_prefix',
        int: 'convenience_publish_rate',
    },
}
MANAGER = {
    int: 'update_rate thread_priority cpu_affinity',
    bool: 'lock_memory overruns.manage overruns.print_warnings enforce_command_limits handle_exceptions',
    str: '*.type',
}


def flat(tree, prefix=''):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flat(value, f'{prefix}{key}.')
        else:
            yield f'{prefix}{key}', value


def wrong(parameters, declared):
    """The parameters that are not declared so: a name that is not there, a type that rclcpp would refuse."""
    kinds = {name: kind for kind, names in declared.items() for name in names.split()}
    for name, value in flat(parameters):
        kind = next(
            (k for known, k in kinds.items() if re.fullmatch(re.escape(known).replace(r'\*', '[^.]+'), name)), None
        )
        given = list[type(value[0])] if isinstance(value, list) else type(value)
        if given != kind:
            yield f'{name}: {value!r}, declared as {kind}'


@pytest.mark.parametrize('path', CONTROLLER_FILES, ids=lambda path: path.stem)
def test_every_parameter_of_a_controller_file_is_one_that_its_controller_declares(path):
    sections = {name: section['ros__parameters'] for name, section in parse(path.read_text())['/**'].items()}
    manager = sections.pop('controller_manager')
    assert list(wrong(manager, MANAGER)) == []
    types = {name: entry['type'] for name, entry in manager.items() if isinstance(entry, dict) and 'type' in entry}
    assert set(sections) <= set(types) and set(types.values()) <= set(DECLARED)
    for name, parameters in sections.items():
        assert list(wrong(parameters, DECLARED[types[name]])) == [], name
        if 'joints' in parameters:
            assert tuple(parameters['joints']) == RobotProfile.load('fr3').joint_names
    # As franka_bringup 3.4.0 has it: cycles are not skipped after one that came late.
    assert manager['overruns'] == {'manage': False, 'print_warnings': False}


def test_a_parameter_that_is_gone_or_of_another_type_is_found():
    declared = DECLARED['franka_robot_state_broadcaster/FrankaRobotStateBroadcaster']
    assert len(list(wrong(yaml.safe_load('{lock_try_count: 5, convenience_publish_rate: 10.0}'), declared))) == 2
