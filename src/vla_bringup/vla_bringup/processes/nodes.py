"""The node list of the suite. It exists here once: the launch files and the supervisor both read it."""

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
    """One node as a process of its own."""

    package: str
    executable: str
    name: str
    namespace: str = ''  # '' or '/cell/arm'
    parameters: dict[str, Value] = field(default_factory=dict)  # all that it gets, the robot profile's included
    lifecycle: bool = False  # must be configured and activated
    remappings: tuple[tuple[str, str], ...] = ()
    waits_for: tuple[tuple[str, str], ...] = ()  # ('reader' or 'writer', topic): there before it is activated
    essential: bool = True  # when it ends, the others are stopped

    def __post_init__(self) -> None:
        if self.namespace and not re.fullmatch(r'(/[A-Za-z][A-Za-z0-9_]*)+', self.namespace):
            raise ValueError(f"namespace {self.namespace!r} is not of the form '/cell/arm'")
        for key, value in self.parameters.items():
            if not isinstance(value, Value):
                raise ValueError(f'parameter {key} of {self.name} is {value!r}: not a bool, number, text or list')

    @property
    def full_name(self) -> str:
        """Fully qualified node name, e.g. /arm/policy."""
        return f'{self.namespace}/{self.name}'

    def write_parameters(self, folder: Path) -> Path:
        """The parameters as a ROS parameter file, which holds in every namespace."""
        path = folder / f'{self.file_stem}.yaml'
        path.write_text(parameter_file(self.parameters))
        return path

    @property
    def file_stem(self) -> str:
        """Name of the node's files: arm.policy for /arm/policy."""
        return self.full_name.strip('/').replace('/', '.')


def share(*parts: str) -> Path:
    """A file or folder that this package installs."""
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
    """The simulated robot and, if wanted, the scripted expert that drives it.

    robot: profile by name or path. real_time_factor: 0 is as fast as possible. params_file: on top of the profile.
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
    """What runs beside the robot: the executor, then the policy.

    drive False: the policy's chunks are for show. model, device: '' as the files have it, else random-nano on the CPU.
    rate: most inferences per second of observation time [Hz], 0 as the files have it. params_file: a ROS parameter
    file on top of the profile; executor_parameters and policy_parameters: on top of that. executor_arguments: what the
    launch decides, and these must not change. Raises ValueError naming what is wrong in them.
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
    """What RViz shows of the policy, see docs/how-to/see-in-rviz.md. It costs next to nothing while nobody looks."""
    parameters = merged('show', namespace, robot, params_file, {'use_sim_time': use_sim_time})
    return NodeSpec('vla_policy_node', 'show', 'show', namespace, parameters)


def rviz_path(robot: str) -> str:
    """The RViz configuration of a robot, by the name or file of its profile, or a .rviz file.

    Raises ValueError when there is none.
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
    """What an executor with these parameters needs before it can be activated: a controller, and joint states."""
    return (
        ('reader', str(executor.get('topics.joint_command', 'target_joint'))),
        ('writer', str(executor.get('topics.joint_states', 'joint_states'))),
    )


def on_its_own(spec: NodeSpec) -> NodeSpec:
    """With clock and transforms in its namespace: for several simulators at once, each with its own time."""
    own = tuple((f'/{name}', name) for name in ('clock', 'tf', 'tf_static'))
    return replace(spec, remappings=(*spec.remappings, *own))


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
    """The recorder. path: folder of the bag, must not exist. privileged: also the simulator's object poses.

    compress: images become jpeg. minutes: of wall time, 0 without end. keep_free [GB]: of its disk. params_file: on top
    of the profile. executor: whose topics are recorded, also those that the launch gave it.
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
