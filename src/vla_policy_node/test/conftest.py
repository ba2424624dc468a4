"""Nodes to test with, in a ROS domain of their own, spun only while something is waited for."""

import time
from importlib.metadata import files
from pathlib import Path

import domain_coordinator
import pytest
import rclpy
from rclpy.executors import SingleThreadedExecutor


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
