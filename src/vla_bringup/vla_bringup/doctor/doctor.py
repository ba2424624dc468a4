"""The doctor: facts about machine, network, model and robot, each with a verdict and a remedy."""

import json
import os
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vla_bringup.console import make_console
from vla_bringup.doctor import gpu as doctor_gpu
from vla_bringup.doctor import machine as doctor_machine
from vla_bringup.doctor import network as doctor_network
from vla_bringup.doctor.check import Check, Probing, Verdict, bounded
from vla_bringup.doctor.checkpoint import check_checkpoint

COLOURS = {Verdict.OK: 'green', Verdict.WARN: 'yellow', Verdict.FAIL: 'red', Verdict.SKIP: 'dim'}
Section = tuple[str, tuple[tuple[str, Probing, float], ...]]  # title; name, probe, bound [s]


def sections(robot: str = '', namespace: str = '', model: str = '', again: bool = False) -> tuple[Section, ...]:
    """Return all probes in the order of the report.

    An empty robot or model means that of the running nodes. again: repeat the trials of engines.
    """
    machine, network, gpu = doctor_machine, doctor_network, doctor_gpu
    from vla_bringup.doctor.robot import check_robot

    return (
        (
            'this machine',
            (
                ('Python', machine.check_python, 10.0),
                ('ROS 2', machine.check_ros, 30.0),
                ('workspace', machine.check_workspace, 30.0),
                ('rendering', machine.check_rendering, 70.0),
                ('resources', machine.check_resources, 10.0),
                ('shared memory', machine.check_shared_memory, 20.0),
                ('kernel', machine.check_kernel, 10.0),
                ('limits', machine.check_limits, 10.0),
                ('CPU governor', machine.check_governor, 10.0),
            ),
        ),
        (
            'GPU',
            (
                ('GPU', gpu.check_gpu, 120.0),
                ('TensorRT', gpu.check_tensorrt, 40.0),
                ('Jetson', gpu.check_jetson, 30.0),
            ),
        ),
        (
            'network',
            (
                ('middleware', network.check_rmw, 30.0),
                ('discovery', network.check_discovery, 10.0),
                ('multicast', network.check_multicast, 10.0),
                ('socket buffers', network.check_sockets, 10.0),
            ),
        ),
        ('model', (('checkpoint', partial(_model, model, robot), 180.0),)),
        ('engines', (('engines', partial(_engines, model, again), 900.0),)),
        ('robot', (('robot', partial(check_robot, robot, namespace), 90.0),)),
    )


def _model(model: str, robot: str):
    from vla_model.checkpoints.shipped import model_path

    return check_checkpoint(model_path(model), robot)


def _engines(model: str, again: bool):
    from vla_bringup.doctor.engines import check_engines
    from vla_model.checkpoints.shipped import model_path

    return check_engines(model_path(model), again)


def run_doctor(
    robot: str = '', namespace: str = '', model: str = '', as_json: bool = False, again: bool = False
) -> bool:
    """Run all probes and print their checks; return False if a check failed.

    Ends the process itself when a probe hangs, as its thread would keep the interpreter alive.
    """
    console = make_console()
    show: Callable[[str, list[Check]], None] = (lambda title, checks: None) if as_json else partial(_show, console)
    found, ended = [], True
    for title, probes in sections(robot, namespace, model, again):
        checks: list[Check] = []
        for name, probe, seconds in probes:
            more, in_time = bounded(name, probe, seconds)
            checks += more
            ended &= in_time
        show(title, checks)
        found += [(title, check) for check in checks]
    counts = Counter(check.verdict for _, check in found)
    good = counts[Verdict.FAIL] == 0
    if as_json:
        lines = [
            {'section': title, 'name': c.name, 'fact': c.fact, 'verdict': c.verdict.value, 'remedy': c.remedy}
            for title, c in found
        ]
        print(json.dumps({'good': good, 'checks': lines}, indent=1))
    else:
        console.print(', '.join(f'{counts[v]} {v.value}' for v in Verdict if counts[v]), style='bold')
    if not ended:
        sys.stdout.flush()
        os._exit(0 if good else 1)
    return good


def _show(console: Console, title: str, checks: list[Check]) -> None:
    table = Table.grid(padding=(0, 1))
    table.add_column(min_width=7, no_wrap=True)
    table.add_column(min_width=17, max_width=17)
    table.add_column(overflow='fold')
    for check in checks:
        colour = COLOURS[check.verdict]
        text = Text(check.fact, style='dim' if check.verdict is Verdict.SKIP else '')
        if check.remedy:
            text.append('\n-> ', colour).append(check.remedy, colour)
        table.add_row(Text(check.verdict.value, colour), Text(check.name), text)
    console.print(Text(title, 'bold'))
    console.print(table)
