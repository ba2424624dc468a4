"""Measurements of a fault, their verdict, and the page docs/reference/faults.md."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sensor_msgs.msg import JointState

from vla_bringup.machine import facts
from vla_core.motion.states import Hold
from vla_core.profile import RobotProfile
from vla_msgs.msg import ExecutorStatus
from vla_policy_node.ros.chunk_msg import to_ns
from vla_policy_node.ros.joints import decode_joints

STILL = 0.01  # [rad/s] the arm is at rest when every joint is slower
PROMPT = 0.1  # [s] in which the executor must report a detectable fault


@dataclass(frozen=True)
class FaultResult:
    """Motion of the arm, from measured joint states, and the set-points after a fault; simulation times."""

    fault: Any
    speed_before: float  # [rad/s] of the fastest joint at the fault
    speed_after: float  # [rad/s] largest of any joint afterwards
    known: float  # [s] until the executor reported the expected hold; infinite: never
    held: float  # [s] until all joints were at rest; infinite: never
    travel: float  # [rad] largest travel of a joint until then
    velocity: float  # largest of the set-points afterwards, as a fraction of the limits
    acceleration: float  # the same
    reported: str  # hold, or all holds joined by commas

    @property
    def good(self) -> bool:
        """Whether the expected hold was reported in time, and set-points kept the limits."""
        right = self.reported == self.fault.expected
        prompt = self.fault.expected in ('dead', 'NONE') or self.known <= self.fault.known_after + PROMPT
        return right and prompt and self.velocity <= 1.0 and self.acceleration <= 1.0


class Recording:
    """Measured joint states, set-points and holds of the executor, each with simulation time."""

    def __init__(self, profile: RobotProfile) -> None:
        self._profile = profile
        self.joints: list[tuple[float, np.ndarray, np.ndarray]] = []  # time [s], positions, velocities
        self._targets: list[tuple[float, np.ndarray]] = []  # stamp [s], velocities
        self._statuses: list[tuple[float, str]] = []  # time of receipt [s], hold
        self._struck = (0, 0, 0)

    def on_joints(self, msg: JointState) -> None:
        positions, velocities = decode_joints(msg, self._profile.joint_names, 'joint_states')
        self.joints.append((to_ns(msg.header.stamp) * 1e-9, positions, velocities))

    def on_target(self, msg: JointState) -> None:
        self._targets.append((to_ns(msg.header.stamp) * 1e-9, np.array(msg.velocity)))

    def on_status(self, msg: ExecutorStatus) -> None:
        now = self.joints[-1][0] if self.joints else 0.0
        self._statuses.append((now, Hold(msg.hold_reason).name))

    def speed(self) -> float:
        """Return the present speed of the fastest joint [rad/s]."""
        return float(np.abs(self.joints[-1][2]).max())

    def hold(self) -> str:
        return self._statuses[-1][1] if self._statuses else ''

    def strike(self) -> None:
        self._struck = (len(self.joints) - 1, len(self._targets), len(self._statuses))

    def elapsed(self) -> float:
        """Return the time since the fault [s]."""
        return self.joints[-1][0] - self.joints[self._struck[0]][0]

    def result(self, fault: Any, alive: bool) -> FaultResult:
        seen = self.joints[self._struck[0] :]
        t0, q0, v0 = seen[0]
        times = np.array([t for t, _, _ in seen]) - t0
        speeds = np.array([np.abs(v).max() for _, _, v in seen])
        still = np.flatnonzero(speeds <= STILL)
        until = int(still[0]) if len(still) else len(seen) - 1
        velocity, acceleration = self._sent()
        statuses = self._statuses[self._struck[2] :]
        first = next((t - t0 for t, hold in statuses if hold == fault.expected), math.inf)
        holds = dict.fromkeys(hold for _, hold in statuses if hold not in ('NONE', 'IDLE'))
        return FaultResult(
            fault,
            speed_before=float(np.abs(v0).max()),
            speed_after=float(speeds.max()),
            known=first,
            held=float(times[until]) if len(still) else math.inf,
            travel=max(float(np.abs(q - q0).max()) for _, q, _ in seen[: until + 1]),
            velocity=velocity,
            acceleration=acceleration,
            reported=', '.join(holds) or ('NONE' if alive else 'dead'),
        )

    def _sent(self) -> tuple[float, float]:
        """Return the largest velocity and acceleration of set-points after the fault, as fractions of the limits."""
        sent = self._targets[max(self._struck[1] - 1, 0) :]
        if len(sent) < 2:
            return 0.0, 0.0
        times, v = np.array([t for t, _ in sent]), np.array([v for _, v in sent])
        steps = np.diff(times)
        usable = (steps > 0.004) & (steps < 0.05)  # excludes a jump of the clock
        a = np.abs(np.diff(v, axis=0)[usable]) / steps[usable, None]
        return (
            float((np.abs(v) / self._profile.velocity).max()),
            float((a / self._profile.acceleration).max()) if usable.any() else 0.0,
        )


_HEAD = """\
# Faults, measured

Written by `./vla bench faults`: real processes over DDS. The fault is injected while the simulated arm moves
({moving}). "known" is the time until the executor's status has the code. "at rest" is the time until every
joint is slower than {still} rad/s. Speeds and travel are those of the worst joint, from measured joint states. "sent"
is the largest velocity and acceleration of the set-points afterwards, as a share of the robot's limits. Values are
medians, with the worst run in brackets.

The executor reports a fault that takes the arm away from it within {prompt:g} s of its detection: a competing
publisher after discovery by DDS, stale joint states after 0.2 s. When chunks stop, the arm finishes the present chunk,
at most 0.8 s here, and brakes on its path. With an unplugged camera the policy first waits until the image is too old
(0.3 s). When the executor dies, no node brakes: the controller holds the last set-point, and the compliant arm moves
into it. After a jump of the clock the source may continue at once, in the new epoch. Late chunks are no fault while
their horizon is long enough. An error of the robot's hardware under ros2_control is in
[interfaces](interfaces.md#after-a-fault-of-the-robot).

"""


def markdown(results: list[FaultResult]) -> str:
    """Return the Markdown table, one line per fault."""
    lines = [
        '| fault | what happens | runs | executor reports | known | at rest '
        '| speed before | largest after | travel | sent |',
        '|---|---|---|---|---|---|---|---|---|---|',
    ]
    for fault in dict.fromkeys(r.fault for r in results):
        runs = [r for r in results if r.fault is fault]

        def cell(name: str, unit: str, digits: int = 2, runs: list[FaultResult] = runs) -> str:
            values = [getattr(r, name) for r in runs]
            if not np.isfinite(values).any():
                return 'never'
            return f'{np.median(values):.{digits}f} (worst {max(values):.{digits}f}) {unit}'

        sent = f'{max(r.velocity for r in runs):.0%}, {max(r.acceleration for r in runs):.0%}'
        lines.append(
            f'| {fault.name} | {fault.about} | {len(runs)} | {", ".join(sorted({r.reported for r in runs}))} '
            f'| {cell("known", "s")} | {cell("held", "s")} | {cell("speed_before", "rad/s")} '
            f'| {cell("speed_after", "rad/s")} | {cell("travel", "rad", 3)} | {sent} |'
        )
    return '\n'.join(lines)


def write_report(results: list[FaultResult], out: Path | None, moving: str) -> None:
    """Print the table, and write the page to out. moving: condition of the motion, as text."""
    table = markdown(results)
    print(table)
    if out is not None:
        machine = '\n'.join(f'- {k}: {v}' for k, v in facts().items())
        out.write_text(_HEAD.format(moving=moving, still=STILL, prompt=PROMPT) + table + f'\n\n{machine}\n')
