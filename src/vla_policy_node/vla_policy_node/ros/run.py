"""Run one node until SIGINT or SIGTERM, then stop it while its context still works."""

import faulthandler
import os
import signal
import sys
import threading
from collections.abc import Callable

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions

from vla_policy_node.ros.arguments import refuse_lost_lists

REST, SHUTDOWN = 3.0, 5.0  # [s] at most; our launch files ask again after both, and kill 5 s later


def run(make_node: Callable[[], Node], args: list[str] | None = None) -> None:
    """Spin the node in a thread of its own; on a signal let it come to rest, shut down, and return.

    rclpy's own signal handlers invalidate the context first, so a node could not publish its last words. A node
    may have `come_to_rest() -> threading.Event`: it is called first and the event awaited (at most REST s) while
    the node still spins. An exception in any callback ends the run and is raised here;
    a ValueError or OSError of make_node is reported in one line, with exit code 1. So is a callback that does
    not return within REST + SHUTDOWN seconds (a model that is being compiled, say): the process ends without teardown.
    """
    try:
        refuse_lost_lists(sys.argv if args is None else args)
    except ValueError as error:
        raise SystemExit(f'cannot start: {error}') from None
    faulthandler.enable()  # native code that dies leaves the line that called it in the log
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    stop, leaving = threading.Event(), threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        node = make_node()
    except (ValueError, OSError) as error:  # what the user can mend is reported in one line
        raise SystemExit(f'cannot start: {error}') from None
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    failure: list[BaseException] = []

    def spin() -> None:
        try:
            executor.spin()
        except BaseException as error:  # of whichever callback: the main thread raises it again
            if not leaving.is_set():  # rclpy's executor may trip over its own shutdown while a callback ends
                failure.append(error)
        finally:
            stop.set()

    thread = threading.Thread(target=spin, name='spin', daemon=True)
    thread.start()
    stop.wait()
    if not failure and hasattr(node, 'come_to_rest'):
        node.come_to_rest().wait(REST)
    leaving.set()
    executor.shutdown(timeout_sec=0.0)  # with more it would wait for callbacks in Humble, and not in Jazzy
    thread.join(SHUTDOWN)
    if thread.is_alive() and not failure:
        # Tearing down what a callback is building, or letting Python end around its thread, would abort.
        node.get_logger().error('a callback does not return: the process ends without tearing down')
        sys.stdout.flush()
        os._exit(1)
    if not failure and hasattr(node, 'trigger_shutdown'):  # nothing spins now: tear-down meets no callback
        try:
            node.trigger_shutdown()
        except Exception as error:
            node.get_logger().error(f'shutdown transition: {error}')
    node.destroy_node()
    rclpy.try_shutdown()
    # Who asks twice (a terminal does, and ros2 launch after it) must not kill what is about to return.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if failure:
        raise failure[0]
