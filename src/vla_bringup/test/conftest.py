"""Evaluates our launch files: with launch and launch_ros where they are installed, else with a stand-in.

The stand-in has the names that our files import, and keeps what they are called with. It shows that a file runs with
its arguments and which nodes it asks for; what ROS makes of that, only the real ones show.
"""

import importlib
import importlib.util
import runpy
import sys
from types import ModuleType

import pytest

from vla_bringup.processes.nodes import share

REAL = importlib.util.find_spec('launch_ros') is not None
NAMES = {
    'launch': 'LaunchContext LaunchDescription',
    'launch.action': 'Action',
    'launch.actions': 'DeclareLaunchArgument EmitEvent ExecuteProcess IncludeLaunchDescription LogInfo OpaqueFunction '
    'RegisterEventHandler Shutdown TimerAction',
    'launch.events': 'matches_action',
    'launch.launch_description_sources': 'PythonLaunchDescriptionSource',
    'launch_ros': '',
    'launch_ros.actions': 'LifecycleNode Node',
    'launch_ros.event_handlers': 'OnStateTransition',
    'launch_ros.events': '',
    'launch_ros.events.lifecycle': 'ChangeState',
    'launch_ros.ros_adapters': 'get_ros_adapter get_ros_node',
}


class Kept:
    """Whatever it stands for: its arguments are its attributes."""

    def __init__(self, *args, **kwargs):
        self.args = args
        self.__dict__.update(kwargs)

    node_package = property(lambda self: self.package)
    node_executable = property(lambda self: self.executable)

    _ExecuteLocal__on_exit = property(lambda self: self.on_exit)

    @property
    def entities(self):
        return self.args[0]


def stand_in(monkeypatch):
    """Puts the stand-in where `import launch` finds it, for one test."""
    for name, words in NAMES.items():
        module = ModuleType(name)
        module.__path__ = []  # a package: its modules are in sys.modules
        for word in words.split():
            setattr(module, word, type(word, (Kept,), {}))
        monkeypatch.setitem(sys.modules, name, module)
    for name in ('vla_bringup.processes.launching', 'vla_bringup.replay.launch_player'):
        monkeypatch.delitem(sys.modules, name, raising=False)


class Loader:
    """Loads launch files for one test."""

    def __init__(self, monkeypatch):
        if not REAL:
            stand_in(monkeypatch)
        launching = importlib.import_module('vla_bringup.processes.launching')
        self.specs = []  # node specs of the file that was loaded last
        real = launching.launch_actions

        def launch_actions(specs, **options):
            self.specs.extend(specs)
            return real(specs, **options)

        monkeypatch.setattr(launching, 'launch_actions', launch_actions)

    def __call__(self, name, **arguments):
        """The actions that a launch file makes. Raises ValueError for an argument that it does not have."""
        from launch.actions import DeclareLaunchArgument

        self.specs.clear()
        content = runpy.run_path(str(share('launch', name)))
        declared = content['ARGUMENTS']
        assert all(isinstance(a, DeclareLaunchArgument) for a in declared)
        if REAL:
            return self._real(content['generate_launch_description'](), declared, arguments)
        values = {}
        for argument in declared:
            assert argument.description
            values[argument.args[0]] = getattr(argument, 'default_value', None)
            choices = getattr(argument, 'choices', None)
            assert choices is None or arguments.get(argument.args[0], choices[0]) in choices
        assert not arguments.keys() - values.keys()
        context = Kept(launch_configurations=values | arguments)
        return content['generate_launch_description']().entities[-1].function(context)

    def executables(self, name, **arguments):
        """(package, executable) of the nodes that a launch file starts."""
        from launch_ros.actions import LifecycleNode, Node

        actions = self(name, **arguments)
        return [(a.node_package, a.node_executable) for a in actions if isinstance(a, (Node, LifecycleNode))]

    @staticmethod
    def arguments(name):
        """The names of its launch arguments."""
        declared = runpy.run_path(str(share('launch', name)))['ARGUMENTS']
        return {a.name if REAL else a.args[0] for a in declared}

    @staticmethod
    def _real(description, declared, arguments):
        from launch import LaunchContext

        assert not arguments.keys() - {a.name for a in declared}
        context = LaunchContext()
        context.launch_configurations.update(arguments)
        for argument in declared:
            assert argument.description
            argument.execute(context)
        return description.entities[-1].execute(context)


@pytest.fixture
def load(monkeypatch):
    return Loader(monkeypatch)
