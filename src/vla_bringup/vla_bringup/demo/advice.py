"""Advice at the end of a demo, after the death of a node or on a machine that is too slow."""

import os
import signal
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from vla_bringup.demo.report import EpisodeReport, Run
from vla_model.engines.trial import ending
from vla_policy_node.ros.chunk_msg import to_ns

LATE = 0.12  # [s] from observation to chunk; the shipped model was trained and evaluated with 0.08
LATE_SHARE = 0.05  # accepted fraction of late chunks
DECODE_RATE = 0.5  # [Hz] of plan texts and of predicted images, the default of the policy node
DECODED_SHARE = 0.5  # least fraction of the plan texts and predicted images at that rate
SLOW = 0.95  # least fraction of the requested real-time factor
SETTLED = 4.0  # [s] plan texts and images of shorter episodes are not counted
DECODED = {'plan texts': 'policy/plan_text', 'predicted images': 'policy/predicted_image'}


@dataclass(frozen=True)
class Pace:
    """Duration of an episode on the wall clock and in simulation [s]."""

    wall: float
    simulation: float


def after_death(name: str, code: int, engine: str) -> str:
    """Return one line of advice about a node, by its name without namespace, that ended with this exit code."""
    platform = 'egl' if os.environ.get('MUJOCO_GL') == 'osmesa' else 'osmesa'
    tries = {
        'policy': '' if engine == 'eager' else './vla demo --engine eager, and ',
        'sim': f'MUJOCO_GL={platform} ./vla demo (another renderer), and ',
    }.get(name, '')
    memory = 'end other programs, as memory may have run out (dmesg), ' if code == -signal.SIGKILL else ''
    return f'{name} {ending(code)}: try {memory}{tries}./vla doctor'


def keeping_up(
    run: Run,
    reports: Iterable[EpisodeReport],
    counts: Mapping[str, int],
    paces: Iterable[Pace],
    real_time_factor: float,
    policy: str = '/policy',
) -> str:
    """Return one line with numbers and advice if the machine was too slow for the demo; else ''.

    counts: messages in the bag by topic. policy: full name of its node. Real-time factor 0 asks for no pace.
    """
    found, paces = [], list(paces)
    wall, simulation = sum(p.wall for p in paces), sum(p.simulation for p in paces)
    if real_time_factor == 0 or wall <= 0:
        return ''
    if simulation < SLOW * real_time_factor * wall:
        found.append(f'the simulation ran at {simulation / wall:.2f} of real time instead of {real_time_factor:g}')
    latencies = [
        (t - to_ns(c.header.stamp)) * 1e-9  # simulation time, in which the arm moves meanwhile
        for t, c in zip(run.chunks.times, run.chunks.values, strict=True)
        if c.source == policy and c.horizon > 0
    ]
    late = sum(latency > LATE for latency in latencies)
    if late > LATE_SHARE * len(latencies):
        found.append(
            f'{late} of {len(latencies)} chunks were published more than {LATE * 1e3:.0f} ms after their observation '
            f'(95th percentile {np.percentile(latencies, 95) * 1e3:.0f} ms)'
        )
    expected = int(sum(DECODE_RATE * (r.end - r.start) * 1e-9 for r in reports if r.end - r.start > SETTLED * 1e9))
    for output, topic in DECODED.items():
        received = sum(n for name, n in counts.items() if name.endswith(f'/{topic}'))
        if received < DECODED_SHARE * expected:
            found.append(f'{received} of about {expected} {output} had time between two chunks')
    if not found:
        return ''
    slower = 1.0 if real_time_factor > 1 else real_time_factor / 2
    return (
        f'this machine did not keep up: {"; ".join(found)}. End other programs, try --real-time-factor {slower:g} or '
        'another --threads, and see the engines in ./vla doctor'
    )
