"""The scripted expert: plans with the poses of all objects, and returns chunks like the model. No ROS.

A task is a list of phases (skill.py): a smooth motion, and a condition for the start of the next phase. The expert
joins them to one commanded path over time. Every chunk is a window of that path, so successive chunks agree. After a
failure the expert brakes along the path and starts over.
"""

from dataclasses import dataclass

import numpy as np

from vla_core.profile import RobotProfile
from vla_model.types import Chunk
from vla_sim.assets.robot import robot_only_model
from vla_sim.kinematics import Kinematics
from vla_sim.motion import SAMPLE, JointPath, Waypoint, plan_path
from vla_sim.tasks import skill_for
from vla_sim.tasks.skill import Make, Measured, Objects, Phase, Skill

JUDGE = (
    0.35  # [s] before its end, at which the condition of a phase is checked; also the length of a wait. Plan more often
)
OFF_PATH = 0.25  # [rad] distance from the commanded path at which the arm does not follow
BRAKE = 0.5  # [s] of braking when a phase is given up
TRIES = 6  # attempts at a task


@dataclass(frozen=True)
class ExpertStep:
    """Result of plan(): the chunk, and the progress in the task (as vla_msgs/TaskProgress)."""

    chunk: Chunk
    subtask: str  # empty: the task is complete
    completed: tuple[str, ...]
    remaining: tuple[str, ...]
    done: bool  # the path has ended: there are no more chunks
    message: str = ''  # reason why it started over or gave up; empty: none


@dataclass
class Segment:
    """A phase on the commanded path. Times [s] since the expert's first plan()."""

    make: Make
    phase: Phase
    path: JointPath
    start: float
    end: float
    due: float  # first value of `end`
    judged: bool = False  # the phase worked


class Expert:
    """Plans one task at a time in chunks. Not thread-safe."""

    def __init__(self, profile: RobotProfile, dt: float = 0.05, horizon: int = 16) -> None:
        """dt: [s] between the steps of a chunk; horizon: steps per chunk. Raises ValueError for a tool_offset."""
        if profile.tool_offset is not None:
            raise ValueError('the scripted expert supports no robot.tool_offset: it moves robot.tool_frame')
        self.profile, self.dt, self.horizon = profile, dt, horizon
        self.kinematics = Kinematics(
            robot_only_model(),
            profile.joint_names,
            profile.tool_frame,
            lower=profile.position_lower,
            upper=profile.position_upper,
            home=profile.home,
        )
        self._skill: Skill | None = None
        self.restart()

    def begin(self, task: str, instruction: str) -> None:
        """Start a task. Raises ValueError for an unknown task, or an instruction of another task."""
        self._skill = skill_for(task, instruction, self.kinematics, self.profile.gripper_max_opening)
        self.restart()

    def restart(self) -> None:
        """Discard the commanded path: the next plan() starts at the measured position of the arm."""
        self._origin: int | None = None
        self._segments: list[Segment] = []
        self._pending: list[Make] = []
        self._tries = 0
        self._message = ''
        self._gave_up = False

    def plan(self, t_ns: int, q: np.ndarray, gripper: float, objects: Objects) -> ExpertStep:
        """Return the next chunk for measurements at t_ns [ns]: q (dof,) [rad], gripper opening [m], objects.

        Poses of objects are in the base frame. Step i of the chunk is due at t_ns + (i + 1) * dt. Raises ValueError
        when objects lacks one of the task, and IKError for an unreachable pose.
        """
        if self._skill is None:
            raise ValueError('the expert has no task: call begin() first')
        if missing := [name for name in self._skill.needs if name not in objects]:
            raise ValueError(f'the task needs {", ".join(missing)}, seen are: {", ".join(sorted(objects)) or "none"}')
        measured = Measured(np.asarray(q, float), *self.kinematics.forward(q), float(gripper), objects)
        if self._origin is None or t_ns < self._origin:
            self.restart()
            self._origin = t_ns
            self._stand(0.0, measured)
            self._pending = self._skill.phases(measured)
            if self._skill.boxed_in(measured):
                self._pending.insert(0, self._skill.clear)
        now = (t_ns - self._origin) * 1e-9
        self._judge(now, measured)
        while self._pending and self._segments[-1].end < now + (self.horizon + 1) * self.dt:
            self._append(self._pending[0], measured)
            del self._pending[0]  # only now, so that an unreachable phase is not skipped
        return self._answer(now)

    def _judge(self, now: float, measured: Measured) -> None:
        """Advance to the present phase; wait or start over when the measurements do not fulfil its condition."""
        assert self._skill is not None
        if self._gave_up:
            return
        if np.abs(measured.q - self._at(now)).max() > OFF_PATH:
            return self._start_over(now, measured, 'the arm does not follow the commanded path', braking=False)
        while len(self._segments) > 1 and self._segments[0].end <= now:
            over = self._segments.pop(0)
            if not (over.judged or over.phase.ready(measured)):  # plan() was not called for a long time
                return self._start_over(now, measured, f'could not {over.phase.subtask}', braking=False)
        current = self._segments[0]
        if trouble := current.phase.broken(measured):
            self._start_over(now, measured, trouble)
        elif not current.judged and now > current.end - JUDGE:
            current.judged = current.phase.ready(measured)
            if not current.judged and now > current.due + current.phase.patience:
                self._start_over(now, measured, f'could not {current.phase.subtask}')
            elif not current.judged:
                current.end = now + JUDGE + self.dt
                self._pending = [segment.make for segment in self._segments[1:]] + self._pending
                del self._segments[1:]

    def _start_over(self, now: float, measured: Measured, why: str, braking: bool = True) -> None:
        """Brake along the commanded path or at the measured position, rise, and plan the remaining phases."""
        assert self._skill is not None
        self._tries += 1
        self._gave_up = self._tries >= TRIES
        self._message = f'{why}; {"gave up" if self._gave_up else "starting over"}'
        if braking:
            u = np.linspace(0.0, 1.0, round(BRAKE / SAMPLE) + 1)
            ahead = BRAKE * (u - u**3 + u**4 / 2)  # integral of a speed that falls smoothly from 1 to 0
            samples, step = np.stack([self._at(now + s) for s in ahead]), BRAKE / (len(u) - 1)
            path = JointPath(samples, step, start_velocity=(samples[1] - samples[0]) / step)
            before = self._segment_at(now).phase
            phase = Phase(before.subtask, before.gripper)
            end = now + BRAKE
            self._segments = [Segment(self._skill.clear, phase, path, now, end, end, judged=True)]
        else:
            self._stand(now, measured)
        self._pending = [] if self._gave_up else [self._skill.clear, *self._skill.phases(measured)]

    def _stand(self, now: float, measured: Measured) -> None:
        """Start a new commanded path with a short rest at the measured position."""
        assert self._skill is not None
        first = self._skill.clear(measured, self._pose(measured.q))  # has the gripper command to keep
        phase, path, end = Phase(first.subtask, first.gripper), JointPath.hold(measured.q, self.dt), now + self.dt
        self._segments = [Segment(self._skill.clear, phase, path, now, end, end, judged=True)]

    def _pose(self, q: np.ndarray) -> Waypoint:
        position, rotation = self.kinematics.forward(q)
        return Waypoint(position, float(np.arctan2(rotation[1, 0], rotation[0, 0])))

    def _append(self, make: Make, measured: Measured) -> None:
        last = self._segments[-1]
        start = last.path.end
        phase = make(measured, self._pose(start))
        path = JointPath.hold(start, 0.0)
        if phase.waypoints:
            path = plan_path(
                self.kinematics,
                start,
                phase.waypoints,
                velocity=self.profile.velocity,
                acceleration=self.profile.acceleration,
            )
        end = last.end + path.duration + phase.dwell
        self._segments.append(Segment(make, phase, path, last.end, end, end))

    def _segment_at(self, t: float) -> Segment:
        for segment in self._segments:
            if t < segment.end:
                return segment
        return self._segments[-1]

    def _at(self, t: float) -> np.ndarray:
        """Return the commanded position at time t [s], (dof,) [rad]."""
        segment = self._segment_at(t)
        return segment.path.at(t - segment.start)

    def _answer(self, now: float) -> ExpertStep:
        assert self._skill is not None
        due = [now + (i + 1) * self.dt for i in range(self.horizon)]
        chunk = Chunk(
            positions=np.stack([self._at(t) for t in due]),
            gripper=np.array([self._segment_at(t).phase.gripper for t in due]),
            dt=self.dt,
        )
        segment = self._segments[0]
        done = not self._pending and len(self._segments) == 1 and segment.judged and now >= segment.end
        subtasks = self._skill.subtasks
        index = subtasks.index(segment.phase.subtask)
        if done and not self._gave_up:
            return ExpertStep(chunk, '', subtasks, (), True, '')
        return ExpertStep(chunk, subtasks[index], subtasks[:index], subtasks[index + 1 :], done, self._message)
