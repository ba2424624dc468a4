"""Nodes to test with, in a ROS domain of their own: spun only while something is waited for, or in a thread."""

import gc
import threading
import time
from importlib.metadata import files
from pathlib import Path

import domain_coordinator
import pytest
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter

from vla_policy_node.policy.policy_node import PolicyNode

from .policy_world import PROFILE, World


class Bench:
    def __init__(self, domain: int) -> None:
        self.domain = domain
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=domain, signal_handler_options=rclpy.SignalHandlerOptions.NO)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.nodes = []

    def add(self, name, kind=rclpy.create_node, **kwargs):
        node = kind(name, context=self.context, use_global_arguments=False, **kwargs)
        self.nodes.append(node)
        self.executor.add_node(node)
        return node

    def wait(self, condition, what='', timeout=20.0):
        """Spin until condition() is true and return it."""
        end = time.monotonic() + timeout
        while not (result := condition()):
            assert time.monotonic() < end, f'not within {timeout} s: {what}'
            self.executor.spin_once(timeout_sec=0.02)
        return result

    def run(self, coroutine, timeout=20.0):
        """The result of a coroutine that the executor runs, or its exception."""
        task = self.executor.create_task(coroutine)
        self.wait(task.done, 'the coroutine ends', timeout)
        return task.result()

    def close(self):
        self.executor.shutdown(timeout_sec=5)
        for node in self.nodes:
            node.destroy_node()
        rclpy.shutdown(context=self.context)


@pytest.fixture
def ros(tmp_path, monkeypatch):
    monkeypatch.setenv('ROS_LOG_DIR', str(tmp_path))
    with domain_coordinator.domain_id() as domain:
        b = Bench(int(domain))
        try:
            yield b
        finally:
            b.close()


@pytest.fixture(scope='session')
def panda_urdf(tmp_path_factory):
    """A file: the Panda of example-robot-data, its meshes by their place on this machine."""
    (found,) = [f for f in files('example-robot-data') or () if str(f).endswith('panda_description/urdf/panda.urdf')]
    place = Path(str(found.locate())).resolve()
    path = tmp_path_factory.mktemp('panda') / 'panda.urdf'
    path.write_text(place.read_text().replace('package://example-robot-data', place.parents[3].as_uri()))
    return path


@pytest.fixture
def domain():
    with domain_coordinator.domain_id() as number:
        yield int(number)


@pytest.fixture
def start(domain, tmp_path, monkeypatch):
    """start(policy, **parameters) -> (world, node), spun in a thread."""
    monkeypatch.setenv('ROS_LOG_DIR', str(tmp_path))
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=domain, signal_handler_options=rclpy.SignalHandlerOptions.NO)
    executor = SingleThreadedExecutor(context=context)
    nodes, failures, worlds, leaving = [], [], [], threading.Event()

    def spin():
        try:
            executor.spin()
        except BaseException as error:
            if not leaving.is_set():  # as in run.py
                failures.append(error)

    def make(policy=None, load=None, **parameters):
        world_node = rclpy.create_node('world', context=context, use_global_arguments=False)
        node = PolicyNode(
            load=load or (lambda model, options: policy),
            context=context,
            use_global_arguments=False,
            cli_args=['--ros-args', '--params-file', str(PROFILE)],
            parameter_overrides=[Parameter(k, value=v) for k, v in {'rate': 100.0, **parameters}.items()],
        )
        nodes.extend([world_node, node])
        world = World(world_node)
        worlds.append(world)
        executor.add_node(world_node)
        executor.add_node(node)
        thread.start()
        return world, node

    thread = threading.Thread(target=spin, daemon=True)
    yield make
    leaving.set()
    if thread.is_alive():
        executor.shutdown(timeout_sec=5)
        thread.join(5)
    for world in worlds:
        world.execute.destroy()
    for node in nodes:
        if isinstance(node, PolicyNode):
            node.tear_down()
        node.destroy_node()
    nodes.clear()
    worlds.clear()
    rclpy.shutdown(context=context)
    gc.collect()  # lifecycle services live as long as their node's Python object
    assert not failures, failures
