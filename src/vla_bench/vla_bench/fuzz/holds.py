"""Drives the executor into every hold with each controller, and measures the steps of the set-points.

The messages of the adapters are received without DDS. A trajectory is executed as
joint_trajectory_controller does it, see trajectory_follower.py; the other controllers hold the last message.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
from rclpy.clock import ClockType
from rclpy.time import Time

from vla_bench.fuzz.trajectory_follower import TrajectoryFollower
from vla_core.clocks import NS
from vla_core.motion.chunk import StampedChunk
from vla_core.motion.executor import ChunkExecutor, ExecutorConfig
from vla_core.motion.limits import velocity_limits
from vla_core.motion.states import Hold, State
from vla_core.profile import RobotProfile
from vla_policy_node.adapters.joint_controller import Target
from vla_policy_node.adapters.table import ADAPTERS

PERIOD = 0.01  # [s]
LATE = 3  # control steps by which the arm follows its set-points
AFTER = 1.5  # [s] of measurement after the event
CONTROLLERS = tuple(ADAPTERS)


class Publisher:
    """A substitute for a node, which keeps the newest message of its adapter."""

    topic_name = '/command'

    def __init__(self) -> None:
        self.newest: Any = None
        self.now = self.late = 0  # [ns] of its clock; that a message is made later than the step that it is for

    def create_publisher(self, *_: Any) -> 'Publisher':
        return self

    def publish(self, message: Any) -> None:
        self.newest = message

    def get_clock(self) -> Any:
        return SimpleNamespace(clock_type=ClockType.ROS_TIME, now=lambda: ros_time(self.now + self.late))


def ros_time(now: int) -> Time:
    return Time(nanoseconds=now, clock_type=ClockType.ROS_TIME)


class Controller:
    """An adapter, and a model of the controller behind it."""

    def __init__(self, kind: str, core: ChunkExecutor, start: np.ndarray) -> None:
        self.node = node = Publisher()
        names = core.profile.joint_names
        target = Target('c', names, 1 / PERIOD, core.course)
        self._adapter = ADAPTERS[kind].load()(node, target)  # type: ignore[arg-type]
        self.follower = TrajectoryFollower(start)

    def send(self, now: int, positions: np.ndarray, velocities: np.ndarray) -> None:
        """At ROS time now [ns]."""
        self.node.newest, self.node.now = None, now
        self._adapter.send(ros_time(now), positions, velocities)
        message = self.node.newest
        if hasattr(message, 'points'):
            self.follower.receive(message, now)
        elif message is not None:
            self.follower.q = np.array(message.position if hasattr(message, 'position') else message.data)

    def follow(self, now: int, seconds: float) -> np.ndarray:
        """Return the controller's set-point (dof,) [rad] at ROS time now [ns], `seconds` after the last call."""
        self.follower.update(now, round(seconds * NS))
        return self.follower.q


class Wall:
    """Stand-in of the collision monitor: stops joint 1 before a position [rad], at 0.3 m per rad."""

    version, margins, config = 0, np.zeros(1), SimpleNamespace(resolution=0.005)

    def __init__(self, hold: Hold) -> None:
        self._hold, self.at = hold, np.inf

    def stand_at(self, position: float) -> None:
        self.at, self.version = position, self.version + 1

    def distances(self, q: np.ndarray) -> np.ndarray:
        return np.array([min(0.3 * abs(self.at - q[0]) if q[0] < self.at else 0.3 * (self.at - q[0]), 9.0)])

    def travel(self, q: np.ndarray) -> np.ndarray:
        return np.concatenate([[0.0], 0.3 * np.cumsum(np.abs(np.diff(q, axis=0)).max(axis=1))])

    def names(self, _: int) -> tuple[str, str, Hold]:
        return 'the arm', 'a wall', self._hold

    def tool_positions(self, q: np.ndarray) -> np.ndarray:
        return np.zeros((len(q), 3))


class Drive:
    """An executor whose arm moves by chunks, 30 ms late, until an event."""

    def __init__(self, profile: RobotProfile, kind: str, seed: int, hold: Hold) -> None:
        self.rng = rng = np.random.default_rng(seed)
        within = kind != 'crisp'
        self.wall = Wall(hold) if hold in (Hold.COLLISION_AHEAD, Hold.WORKSPACE) else None
        config = ExecutorConfig(period=PERIOD, release_within_acceleration=within)
        self.core = core = ChunkExecutor(profile, config, self.wall)  # type: ignore[arg-type]
        self.profile, self.kind = profile, kind
        self.seconds, self.offset, self.stamp_offset = 0.0, 10_000 * NS, 0
        self.chunks, self.joints, self.repeat_stamp = True, True, False
        self.spoil: Callable[[np.ndarray], np.ndarray] = lambda q: q
        way = rng.choice([-1.0, 1.0], profile.dof) * rng.uniform(0.3, 0.8, profile.dof)
        room = 0.8 * (profile.position_lower - profile.home), 0.8 * (profile.position_upper - profile.home)
        self._way = np.clip(way, *room)
        share = rng.uniform(0.1, 0.7)
        fast = (share * profile.velocity / np.abs(self._way)).min()
        self._frequency = min(fast, np.sqrt((0.4 * profile.acceleration / np.abs(self._way)).min()))
        self.sent = [profile.home.copy()] * (LATE + 1)
        self.references: list[np.ndarray] = []
        self.states: list[tuple[State, Hold]] = []
        self._stamp, self._sequence = 0, 0
        self.controller = Controller(kind, core, profile.home)
        self.observe()
        core.activate(self.now)
        self._begun = self.now
        self.references.append(profile.home.copy())

    @property
    def now(self) -> int:
        return round(self.seconds * NS) + self.offset

    def measured(self) -> np.ndarray:
        """Return the measured position (dof,) [rad], with noise in the last bits, as of an encoder."""
        return self.sent[-1 - LATE] + 1e-6 * self.rng.normal(size=self.profile.dof)

    def observe(self) -> None:
        if not self.repeat_stamp:
            self._stamp = self.now + self.stamp_offset
        self.core.observe(self.spoil(self.measured()), self._stamp, self.now)

    def chunk(self, horizon: int = 10) -> None:
        self._sequence += 1
        times = (self.now - self._begun) * 1e-9 + 0.1 * np.arange(1, horizon + 1)
        q = self.profile.home + self._way * (1 - np.cos(self._frequency * times))[:, None] / 2
        self.core.ingest(
            StampedChunk(
                t_ref=self.now, epoch=self.core.epoch, sequence=self._sequence, source='/holds',
                joint_names=self.profile.joint_names, dt=0.1, horizon=horizon, positions=q, gripper=np.zeros(0),
            ),
            self.now,
        )  # fmt: skip

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> None:
        """Run control steps for this time [s], with a joint state before each and a chunk every 0.2 s."""
        for _ in range(round(seconds / PERIOD)):
            if until():
                return
            self.seconds += PERIOD
            if self.joints:
                self.observe()
            if self.chunks and round(self.seconds / PERIOD) % 20 == 0:
                self.chunk()
            point = self.core.step(self.now, PERIOD)
            if point is not None:
                self.controller.send(self.now, point.positions, point.velocities)
                self.sent.append(point.positions)
            else:
                self.sent.append(self.sent[-1])
            self.references.append(self.controller.follow(self.now, PERIOD))
            self.states.append((self.core.state, self.core.hold))

    def speed(self) -> float:
        return float(np.abs(self.sent[-1] - self.sent[-2]).max()) / PERIOD


# ---- events; each gets the drive in motion


def _set(**changes: Any) -> Callable[[Drive], None]:
    def strike(drive: Drive) -> None:
        for name, value in changes.items():
            setattr(drive, name, value)

    return strike


def _fault(hold: Hold) -> Callable[[Drive], None]:
    return lambda drive: drive.core.fault(hold, 'it is so')


def _stop_request(drive: Drive) -> None:
    drive.chunk(0)
    drive.chunks = False


def _clock(seconds: float) -> Callable[[Drive], None]:
    def strike(drive: Drive) -> None:
        drive.offset += round(seconds * NS)
        drive.chunks = False

    return strike


def _contact(drive: Drive) -> None:
    """Block the fastest joint."""
    joint = int(np.abs(drive.sent[-1] - drive.sent[-2]).argmax())
    stuck = drive.measured()[joint]

    def spoil(q: np.ndarray) -> np.ndarray:
        q[joint] = stuck + 1e-5 * drive.rng.normal()
        return q

    drive.spoil = spoil


def _contact_and_stop(drive: Drive) -> None:
    """Stop the arm as its operator, just before the executor detects the contact."""
    speed = drive.speed()
    _contact(drive)
    config = drive.core.config
    near = config.tracking_limit + speed * (config.tracking_delay - 0.01)
    drive.run(2.0, until=lambda: drive.core.tracking_error() > near)
    drive.core.operator_stop()


def _push(drive: Drive) -> None:
    """Push the arm at rest away, and hold it there."""
    drive.chunks = False
    drive.run(3.0, until=lambda: drive.core.at_rest and drive.core.hold is Hold.CHUNKS_STOPPED)
    drive.run(0.2)
    joint, began = int(drive.rng.integers(drive.profile.dof)), drive.seconds
    there, far = drive.sent[-1][joint], drive.rng.uniform(0.12, 0.3) * drive.rng.choice([-1.0, 1.0])

    def spoil(q: np.ndarray) -> np.ndarray:
        q[joint] = there + np.sign(far) * min(abs(far), drive.seconds - began) + 1e-5 * drive.rng.normal()
        return q

    drive.spoil = spoil


def _freeze(drive: Drive) -> None:
    old = drive.measured()
    drive.spoil = lambda _: old.copy()


def _wall(drive: Drive) -> None:
    """Put a wall on the path of joint 1, half way to its turning point."""
    assert drive.wall is not None
    drive.wall.stand_at((drive.sent[-1][0] + drive.profile.home[0] + drive._way[0]) / 2)


@dataclass(frozen=True)
class Case:
    """hold: what must come of it. about: what happens. needs: [rad/s] that joint 1 must have upwards before it."""

    hold: Hold
    about: str
    strike: Callable[[Drive], None]
    needs: float = 0.0


CASES = (
    Case(Hold.CHUNKS_STOPPED, 'no more chunks', _set(chunks=False)),
    Case(Hold.STOP_REQUESTED, 'a chunk with horizon 0', _stop_request),
    Case(Hold.OPERATOR_STOP, '`~/stop`', lambda drive: drive.core.operator_stop()),
    Case(Hold.EMERGENCY_STOP, 'true on `~/emergency_stop`', lambda drive: drive.core.emergency_stop()),
    Case(Hold.DEACTIVATED, 'deactivated', lambda drive: drive.core.deactivate()),
    Case(Hold.JOINT_STATE_STALE, 'no more joint states', _set(joints=False)),
    Case(Hold.JOINT_STATE_STALE, 'stamps 3600 s ahead', _set(stamp_offset=3600 * NS)),
    Case(Hold.JOINT_STATE_STALE, 'stamps set back by 0.5 s', _set(stamp_offset=-NS // 2)),
    Case(Hold.JOINT_STATE_STALE, 'stamps that stand still', _set(repeat_stamp=True)),
    Case(Hold.JOINT_STATE_STALE, 'positions in degrees', _set(spoil=np.rad2deg)),
    Case(Hold.JOINT_STATE_STALE, 'positions far outside the limits', _set(spoil=lambda q: q + 9.0)),
    Case(Hold.JOINT_STATE_STALE, 'NaN', _set(spoil=lambda q: q * np.nan)),
    Case(Hold.CLOCK_JUMP, 'the clock is set 1 h ahead', _clock(3600.0)),
    Case(Hold.CLOCK_JUMP, 'the clock is set 1 h back', _clock(-3600.0)),
    Case(Hold.CLOCK_JUMP, 'the clock is set 0.1 s back', _clock(-0.1)),
    Case(Hold.COLLISION_AHEAD, 'a wall appears', _wall, 0.05),
    Case(Hold.WORKSPACE, 'the workspace ends', _wall, 0.05),
    Case(Hold.CONTROLLER_MISSING, 'no controller listens', _fault(Hold.CONTROLLER_MISSING)),
    Case(Hold.COMPETING_PUBLISHER, 'a second publisher', _fault(Hold.COMPETING_PUBLISHER)),
    Case(Hold.ROBOT_FAULT, "the robot's mode", _fault(Hold.ROBOT_FAULT)),
    Case(Hold.CHUNK_STALE, 'an old observation', _fault(Hold.CHUNK_STALE)),
    Case(Hold.JOINT_STATE_FROZEN, 'the driver repeats old values', _freeze),
    Case(Hold.BLOCKED, 'contact in motion', _contact),
    Case(Hold.OPERATOR_STOP, 'contact, and `~/stop` before it is noticed', _contact_and_stop),
    Case(Hold.TRACKING_ERROR, 'pushed at rest', _push),
)


@dataclass(frozen=True)
class Held:
    """What a controller got. velocity and acceleration: largest multiples of the hard limits, from one control step to
    the next, and anywhere between the points of a trajectory.
    """

    case: Case
    kind: str
    speed: float  # [rad/s] of the fastest joint at the event
    holds: tuple[Hold, ...]  # of the run
    step: float  # [rad] largest from one control step to the next
    velocity: float
    acceleration: float
    rests: float  # [s] from the report of the hold to the rest of the set-points

    @property
    def within(self) -> bool:
        """Whether the set-points keep the limits that this controller needs."""
        free = self.kind == 'crisp' and self.case.strike in (_contact, _contact_and_stop, _push)
        return self.velocity <= 1.0 and (free or self.acceleration <= 1.0)


def hold(profile: RobotProfile, kind: str, case: Case, seed: int) -> Held:
    """Drive an arm into a hold, and return the measures."""
    drive = Drive(profile, kind, seed, case.hold)
    if case.needs:
        drive._way[0] = 0.3
    drive.run(drive.rng.uniform(0.3, 0.9))

    def ready() -> bool:
        along = (drive.sent[-1][0] - drive.sent[-2][0]) / PERIOD
        return drive.speed() > 0.05 and along >= case.needs

    drive.run(5.0, until=ready)
    speed, before = drive.speed(), len(drive.states)
    case.strike(drive)
    drive.run(AFTER)
    drive.run(AFTER, until=lambda: drive.core.at_rest)
    q = np.array(drive.references)
    v = np.diff(q, axis=0) / PERIOD
    down, up = velocity_limits(profile, (q[1:] + q[:-1]) / 2)
    a = np.diff(v, axis=0) / PERIOD
    cubics = drive.controller.follower
    after = drive.states[before:]
    known = next((i for i, (_, h) in enumerate(after) if h is case.hold), len(after))
    still = next((i for i, (s, _) in enumerate(after[known:]) if s in (State.HOLDING, State.INACTIVE)), len(after))
    return Held(
        case, kind, speed,
        holds=tuple(dict.fromkeys(h for _, h in after)),
        step=float(np.abs(np.diff(q, axis=0)).max()),
        velocity=max(_largest(v, np.where(v > 0, up, down)), _largest(cubics.fastest, profile.velocity)),
        acceleration=max(_largest(a, profile.acceleration), _largest(cubics.hardest, profile.acceleration)),
        rests=still * PERIOD,
    )  # fmt: skip


def _largest(values: np.ndarray, limits: np.ndarray) -> float:
    return float((np.abs(values) / limits).max())


def table(held: list[Held]) -> str:
    """Return the Markdown table: one line per case and controller, with the worst of its runs."""
    lines = [
        '| hold | what happens | controller | runs | speed before [rad/s] | largest step [mrad per 10 ms] '
        '| of the velocity limit | of the acceleration limit | at rest after [s] |',
        '|---|---|---|---|---|---|---|---|---|',
    ]
    for case in CASES:
        for kind in CONTROLLERS:
            runs = [h for h in held if h.case is case and h.kind == kind]
            if runs:
                worst = {n: max(getattr(r, n) for r in runs) for n in ('step', 'velocity', 'acceleration', 'rests')}
                lines.append(
                    f'| `{case.hold.name}` | {case.about} | {kind} | {len(runs)} | {max(r.speed for r in runs):.2f} '
                    f'| {1e3 * worst["step"]:.1f} | {worst["velocity"]:.2f} | {worst["acceleration"]:.2f} '
                    f'| {worst["rests"]:.2f} |'
                )
    return '\n'.join(lines)
