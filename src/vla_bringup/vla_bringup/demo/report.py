"""The report of a recorded run, computed from its bag alone."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vla_bringup.bags.bag import Bag
from vla_core.clocks import SECONDS
from vla_msgs.msg import ExecutorStatus
from vla_policy_node.ros.chunk_msg import to_ns

BAG_TIME_SLACK = 50_000_000  # [ns] largest lag of bag time behind a stamp
FRAME_GAP = 1.5  # a frame is missing when the next comes later than this many periods


@dataclass
class Series:
    """Values with their times, in the order in which they were read."""

    times: list[int] = field(default_factory=list)  # [ns] ROS time
    values: list[Any] = field(default_factory=list)

    def add(self, time: int, value: Any) -> None:
        self.times.append(time)
        self.values.append(value)

    def in_order(self) -> list[Any]:
        """Return the values sorted by time."""
        return [self.values[i] for i in np.argsort(np.array(self.times, np.int64), kind='stable')]

    def between(self, start: int, end: int) -> list[Any]:
        """Return the values with start <= time < end [ns]."""
        return [v for t, v in zip(self.times, self.values, strict=True) if start <= t < end]

    def at(self, time: int) -> Any:
        """Return the newest value not later than time [ns]; None before the first."""
        i = int(np.searchsorted(self.times, time, side='right')) - 1
        return self.values[i] if i >= 0 else None


@dataclass
class Run:
    """Messages of a bag without pixels. Times are ROS time [ns]."""

    episodes: Series = field(default_factory=Series)  # Episode messages, by start
    success: Series = field(default_factory=Series)  # bool
    subtask: Series = field(default_factory=Series)  # str
    plan: Series = field(default_factory=Series)  # str, the policy's plan text, by the time it came
    measured: Series = field(default_factory=Series)  # (dof,) [rad]
    commanded: Series = field(default_factory=Series)  # (dof,) [rad]
    executor: Series = field(default_factory=Series)  # ExecutorStatus messages
    chunks: Series = field(default_factory=Series)  # ActionChunk messages, by the time they came
    frames: dict[str, list[int]] = field(default_factory=dict)  # image topic -> stamps
    end: int = 0


@dataclass(frozen=True)
class EpisodeReport:
    """Numbers of one episode, a row of the table."""

    index: int
    task: str
    seed: int
    instruction: str
    success: bool
    start: int  # [ns] ROS time
    end: int  # [ns] of the next episode, or the end of the bag
    time: float  # [s] from reset to success, or of the whole episode
    driver: str  # node whose chunks moved the arm; several are joined by commas
    chunks: int  # of the driver
    shadow_chunks: int  # of the policy
    inference_p50: float  # [s] of the policy; nan without chunks
    inference_p95: float
    seam_position: float  # [rad] largest joint jump between two chunks, absorbed by blending
    tracking_error: float  # [rad] largest |commanded - measured| while executing
    refused: int  # chunks that the executor refused, without those in shadow
    frames_missed: int  # gaps in the camera streams


def read_run(
    path: str | Path, joint_names: tuple[str, ...], namespace: str = '', topics: dict[str, Any] | None = None
) -> Run:
    """Read a bag. joint_names: order of the columns. topics: the profile's `topics` and `camera_topics`.

    Raises ValueError when the bag cannot be read.
    """
    topics = topics or {}
    measured = f'{namespace}/{topics.get("joint_states", "joint_states")}'
    commanded = f'{namespace}/{topics.get("joint_command", "target_joint")}'
    cameras = [f'{namespace}/{t}' for t in topics.get('camera_topics', ('front/image_raw', 'wrist/image_raw'))]
    infos = [c.rsplit('/', 1)[0] + '/camera_info' for c in cameras]  # a CameraInfo has the stamp of its image
    run = Run(frames={camera: [] for camera in cameras})
    others = ('sim/episode', 'sim/success', 'expert/progress', 'executor/status', 'action_chunk', 'policy/plan_text')
    with Bag(path) as bag:
        for topic, time, msg in bag.messages([measured, commanded, *infos, *(f'{namespace}/{t}' for t in others)]):
            run.end = max(run.end, time)
            if topic in (measured, commanded):
                if set(joint_names) <= set(msg.name):
                    order = [msg.name.index(n) for n in joint_names]
                    series = run.measured if topic == measured else run.commanded
                    series.add(to_ns(msg.header.stamp), np.asarray(msg.position)[order])
                continue
            if topic in infos:
                run.frames[cameras[infos.index(topic)]].append(to_ns(msg.header.stamp))
                continue
            match topic.removeprefix(f'{namespace}/'):
                case 'sim/episode':
                    run.episodes.add(to_ns(msg.header.stamp), msg)
                case 'sim/success':
                    run.success.add(time, bool(msg.data))
                case 'expert/progress':
                    run.subtask.add(to_ns(msg.header.stamp), msg.current)
                case 'policy/plan_text':
                    run.plan.add(time, msg.data)
                case 'executor/status':
                    run.executor.add(to_ns(msg.header.stamp), msg)
                case 'action_chunk':
                    run.chunks.add(time, msg)
    return run


def episode_reports(run: Run, only: set[tuple[str, int]] | None = None) -> list[EpisodeReport]:
    """Return a report per episode of the run. only: (task, seed) of the wanted episodes; None: all."""
    starts = run.episodes.times
    ends = [*starts[1:], run.end + 1][: len(starts)]
    reports = []
    for start, end, episode in zip(starts, ends, run.episodes.values, strict=True):
        if only is None or (episode.task, int(episode.seed)) in only:
            reports.append(_episode(run, episode, start, end))
    return reports


def _episode(run: Run, episode: Any, start: int, end: int) -> EpisodeReport:
    reached = success_time(run.success, start, end)
    statuses = [s for s in run.executor.between(start, end) if s.state != ExecutorStatus.STATE_INACTIVE]
    executing = [s for s in statuses if s.state == ExecutorStatus.STATE_EXECUTING]
    chunks = run.chunks.between(start, end)
    driving = [c for c in chunks if not c.shadow and c.horizon > 0]
    shadow = [c for c in chunks if c.shadow]
    inference = np.array([to_ns(c.inference_time) * SECONDS for c in shadow or driving])
    counts = np.array([s.verdict_counts for s in statuses], np.int64)
    refused = 0
    if len(counts):
        grown = counts[-1] - counts[0]
        grown[[ExecutorStatus.ACCEPTED, ExecutorStatus.REJECT_SHADOW]] = 0
        refused = int(grown.sum())
    return EpisodeReport(
        index=int(episode.index),
        task=episode.task,
        seed=int(episode.seed),
        instruction=episode.instruction,
        success=reached is not None,
        start=start,
        end=end,
        time=((end if reached is None else reached) - start) * SECONDS,
        driver=', '.join(sorted({c.source for c in driving})),
        chunks=len(driving),
        shadow_chunks=len(shadow),
        inference_p50=float(np.percentile(inference, 50)) if len(inference) else float('nan'),
        inference_p95=float(np.percentile(inference, 95)) if len(inference) else float('nan'),
        seam_position=max((float(s.seam_position) for s in executing), default=0.0),
        tracking_error=max((float(s.tracking_error) for s in executing), default=0.0),
        refused=refused,
        frames_missed=sum(missed_frames(stamps, start, end) for stamps in run.frames.values()),
    )


def success_time(success: Series, start: int, end: int) -> int | None:
    """Return the start [ns] of the success that still held at the end; None without. A success that ended is none."""
    since = None
    for time, ok in zip(success.times, success.values, strict=True):
        if start < time < end - BAG_TIME_SLACK:
            since = (time if since is None else since) if ok else None
    return since


def missed_frames(stamps: list[int], start: int, end: int) -> int:
    """Return the number of missing frames between start and end [ns]: gaps in multiples of the usual period."""
    inside = np.array([t for t in stamps if start <= t < end], np.int64)
    if len(inside) < 3:
        return 0
    gaps = np.diff(inside) / np.median(np.diff(inside))
    return int(np.sum(np.round(gaps[gaps > FRAME_GAP]) - 1))
