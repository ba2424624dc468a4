"""The node list of the suite, for launch files and supervisor."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from ament_index_python.packages import get_package_share_directory

from vla_bringup.processes.overrides import Value, known, merged
from vla_core.observe.cadence import RATE
from vla_core.parameter_file import parameter_file
from vla_core.profile import RobotProfile
from vla_model.checkpoints.shipped import RANDOM


@dataclass(frozen=True)
class NodeSpec:
    """A node in its own process."""

    package: str
    executable: str
    name: str
    namespace: str = ''  # '' or '/cell/arm'
    parameters: dict[str, Value] = field(default_factory=dict)  # all, with those of the robot profile
    lifecycle: bool = False  # must be configured and activated
    remappings: tuple[tuple[str, str], ...] = ()
    waits_for: tuple[tuple[str, str], ...] = ()  # ('reader' or 'writer', topic): must exist before the activation
    essential: bool = True  # the other nodes are stopped when it ends

    def __post_init__(self) -> None:
        if self.namespace and not re.fullmatch(r'(/[A-Za-z][A-Za-z0-9_]*)+', self.namespace):
            raise ValueError(f"namespace {self.namespace!r} is not of the form '/cell/arm'")
        for key, value in self.parameters.items():
            if not isinstance(value, Value):
                raise ValueError(f'parameter {key} of {self.name} is {value!r}: not a bool, number, text or list')

    @property
    def full_name(self) -> str:
        """Full node name, e.g. /arm/policy."""
        return f'{self.namespace}/{self.name}'

    def write_parameters(self, folder: Path) -> Path:
        """Write the parameters as a ROS parameter file for every namespace, and return its path."""
        path = folder / f'{self.file_stem}.yaml'
        path.write_text(parameter_file(self.parameters))
        return path

    @property
    def file_stem(self) -> str:
        """Name of the node's files: arm.policy for /arm/policy."""
        return self.full_name.strip('/').replace('/', '.')


def share(*parts: str) -> Path:
    """Return the path of a file or folder of the installed package."""
    return Path(get_package_share_directory('vla_bringup'), *parts)


def sim_nodes(
    robot: str = 'sim_panda',
    *,
    namespace: str = '',
    task: str = 'press_button',
    seed: int = 0,
    real_time_factor: float = 1.0,
    expert: bool = True,
    params_file: str = '',
) -> list[NodeSpec]:
    """Return the simulator and, with `expert`, the scripted expert that drives it.

    robot: profile by name or path. real_time_factor: 0 is as fast as possible. params_file: ROS parameter file on top
    of the profile.
    """
    arguments: dict[str, dict[str, Value]] = {
        'sim': {'task': task, 'seed': seed, 'real_time_factor': float(real_time_factor)},
        'expert': {'use_sim_time': True},
    }
    return [
        NodeSpec(
            'vla_sim', f'{name}_node', name, namespace, merged(name, namespace, robot, params_file, arguments[name])
        )
        for name in ('sim', *(['expert'] if expert else []))
    ]


def policy_nodes(
    robot: str,
    *,
    namespace: str = '',
    model: str = '',
    device: str = '',
    drive: bool = False,
    rate: float = 0.0,
    use_sim_time: bool = False,
    params_file: str = '',
    executor_arguments: Mapping[str, Value] | None = None,
    executor_parameters: Mapping[str, Value] | None = None,
    policy_parameters: Mapping[str, Value] | None = None,
) -> list[NodeSpec]:
    """Return the executor and the policy, in this order.

    drive: False runs the policy in shadow. model, device: '' means the value of the files, else random-nano on the CPU.
    rate: highest rate of inferences in observation time [Hz], 0 means the value of the files. params_file: ROS
    parameter file on top of the profile; executor_parameters and policy_parameters are on top of it.
    executor_arguments: values of the launch, which the other sources must not contradict. Raises ValueError with the
    wrong name or value.
    """
    arguments: dict[str, Value] = {'use_sim_time': use_sim_time, 'drive': drive}
    arguments |= {'model': model} if model else {}
    arguments |= {'device': device} if device else {}
    arguments |= {'rate': float(rate)} if rate else {}
    own = merged(
        'executor', namespace, robot, params_file, {'use_sim_time': use_sim_time, **(executor_arguments or {})},
        executor_parameters,
    )  # fmt: skip
    thinks = merged(
        'policy', namespace, robot, params_file, arguments, policy_parameters,
        {'model': RANDOM, 'device': 'cpu', 'rate': RATE},
    )  # fmt: skip
    package = 'vla_policy_node'
    return [
        NodeSpec(package, 'executor_node', 'executor', namespace, own, lifecycle=True, waits_for=waits_for(own)),
        NodeSpec(package, 'policy_node', 'policy', namespace, thinks, lifecycle=True),
    ]


def show_node(robot: str, *, namespace: str = '', use_sim_time: bool = False, params_file: str = '') -> NodeSpec:
    """Return the node that draws the policy for RViz, see docs/how-to/see-in-rviz.md; idle without subscribers."""
    parameters = merged('show', namespace, robot, params_file, {'use_sim_time': use_sim_time})
    return NodeSpec('vla_policy_node', 'show', 'show', namespace, parameters)


def rviz_path(robot: str) -> str:
    """Return the path of an RViz configuration. robot: name or file of a robot profile, or a .rviz file.

    Raises ValueError when no configuration exists.
    """
    if Path(robot).is_file():
        if Path(robot).suffix == '.rviz':
            return str(Path(robot).absolute())
        robot = RobotProfile.load(robot).name
    path = share('rviz', f'{robot}.rviz')
    if not path.is_file():
        known = ', '.join(sorted(p.stem for p in share('rviz').glob('*.rviz')))
        raise ValueError(f'no RViz configuration for {robot!r}: give a .rviz file, or one of {known}')
    return str(path)


def waits_for(executor: Mapping[str, Value]) -> tuple[tuple[str, str], ...]:
    """Return the endpoints that an executor with these parameters needs: a controller, and joint states."""
    return (
        ('reader', str(executor.get('topics.joint_command', 'target_joint'))),
        ('writer', str(executor.get('topics.joint_states', 'joint_states'))),
    )


# Remappings that put clock and transforms into a node's namespace.
OWN = tuple((f'/{name}', name) for name in ('clock', 'tf', 'tf_static'))


def on_its_own(spec: NodeSpec) -> NodeSpec:
    """Return the spec with clock and transforms in its namespace, for several simulators with their own times."""
    return replace(spec, remappings=(*spec.remappings, *OWN))


def recorder_node(
    robot: str,
    path: str | Path,
    *,
    namespace: str = '',
    use_sim_time: bool = False,
    privileged: bool = False,
    compress: bool = False,
    minutes: float = 0.0,
    keep_free: float = 1.0,
    params_file: str = '',
    executor: NodeSpec | None = None,
) -> NodeSpec:
    """Return the recorder. path: folder of the bag, must not exist. privileged: also record the object poses.

    compress: write images as JPEG. minutes: duration in wall time, 0 for no limit. keep_free: least free disk space
    [GB]. params_file: ROS parameter file on top of the profile. executor: node whose topics are recorded.
    """
    arguments: dict[str, Value] = {
        'use_sim_time': use_sim_time,
        'path': str(path),
        'privileged': privileged,
        'jpeg_quality': 90 if compress else 0,
        'minutes': float(minutes),
        'keep_free': float(keep_free),
    }
    parameters = merged('recorder', namespace, robot, params_file, arguments)
    if executor is not None:
        own = known().get('recorder', {})
        parameters |= {n: v for n, v in executor.parameters.items() if n.startswith('topics.') and n in own}
    return NodeSpec('vla_bringup', 'recorder_node', 'recorder', namespace, parameters, essential=False)
