"""Pictures of a recorded run: one video per episode, one figure of commanded against measured joints."""

import textwrap
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.font_manager import findfont
from matplotlib.patches import Patch
from PIL import Image, ImageDraw, ImageFont

from vla_bringup.bags.bag import Bag
from vla_bringup.demo.report import EpisodeReport, Run
from vla_core.clocks import SECONDS
from vla_msgs.msg import ExecutorStatus
from vla_policy_node.ros.chunk_msg import to_ns
from vla_policy_node.ros.images import decode_image

VIEW = 384  # [pixel] height of each camera's picture in the video
CAPTION = 72  # [pixel]
PLAN_LINES, LINE = 6, 17  # lines of a plan text, and their height [pixel]
GROUND = '#16181d'
JUMP = 0.15  # [s] after a reset in which commanded and measured cannot be compared
STATES = {
    ExecutorStatus.STATE_INACTIVE: ('inactive', '#bdbdbd'),
    ExecutorStatus.STATE_HOLDING: ('holding', '#c6dbef'),
    ExecutorStatus.STATE_BRAKING: ('braking', '#fdae6b'),
}


class Video:
    """Writes an H.264 MP4 frame by frame, each with its own time."""

    def __init__(self, path: Path, width: int, height: int) -> None:
        self._container = av.open(str(path), 'w')
        self._stream = self._container.add_stream('libx264', rate=30, options={'crf': '21', 'preset': 'veryfast'})
        self._stream.width, self._stream.height = width, height
        self._stream.pix_fmt = 'yuv420p'
        self._stream.codec_context.time_base = Fraction(1, 1000)

    def add(self, seconds: float, pixels: np.ndarray) -> None:
        """Append a frame, pixels (height, width, 3) uint8 RGB, at a time [s] later than that of the frame before."""
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format='rgb24')
        frame.pts, frame.time_base = round(seconds * 1000), Fraction(1, 1000)
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        self._container.mux(self._stream.encode(None))
        self._container.close()


def write_videos(bag: str | Path, run: Run, episodes: list[EpisodeReport], folder: Path) -> dict[int, str]:
    """Write an MP4 per episode: cameras and predicted image side by side over a caption. Return index -> file name."""
    names: dict[int, str] = {}
    imagined_topic = _imagined_topic(bag)
    imagined: Any = None  # the newest message of the present episode
    waiting: dict[int, dict[str, Any]] = {}  # stamp -> topic -> message, until all cameras have that stamp
    video: Video | None = None
    current: EpisodeReport | None = None
    with Bag(bag) as reader:
        for topic, _, msg in reader.messages([*run.frames, *imagined_topic]):
            stamp = to_ns(msg.header.stamp)
            if topic in imagined_topic:
                imagined = msg
                continue
            views = waiting.setdefault(stamp, {})
            views[topic] = msg
            if len(views) < len(run.frames):
                continue
            waiting = {t: v for t, v in waiting.items() if t > stamp}
            episode = next((e for e in episodes if e.start <= stamp < e.end), None)
            if video is not None and episode != current:
                video.close()
                video, imagined = None, None
            current = episode
            if episode is None:
                continue
            picture = _picture([views[t] for t in run.frames], run, episode, stamp)
            if imagined_topic:
                picture = np.concatenate([picture, _imagined(imagined, episode, len(picture))], 1)
            if video is None:
                names[episode.index] = f'{episode.index:02d}_{episode.task}.mp4'
                video = Video(folder / names[episode.index], picture.shape[1], picture.shape[0])
            video.add((stamp - episode.start) * SECONDS, picture)
    if video is not None:
        video.close()
    return names


def _imagined_topic(bag: str | Path) -> list[str]:
    """Return the topics of predicted images in the bag, at most one."""
    with Bag(bag) as reader:
        return [topic for topic, count in reader.counts.items() if topic.endswith('policy/predicted_image') and count]


def _imagined(msg: Any, episode: EpisodeReport, height: int) -> np.ndarray:
    """Return the newest predicted image with its time, (height, VIEW, 3) uint8."""
    page = Image.new('RGB', (VIEW, height), GROUND)
    draw = ImageDraw.Draw(page)
    label = 'imagined'
    if msg is not None:
        pixels = np.ascontiguousarray(decode_image(msg, 'policy/predicted_image'))
        page.paste(Image.fromarray(pixels).resize((VIEW, VIEW), Image.Resampling.BICUBIC), (0, 0))
        label += f' for {(to_ns(msg.header.stamp) - episode.start) * SECONDS:.1f} s'
    draw.text((8, 6), label, font=_font(13), fill='white', stroke_width=2, stroke_fill='black')
    return np.asarray(page)


def _picture(views: list[Any], run: Run, episode: EpisodeReport, stamp: int) -> np.ndarray:
    """Return a frame (height, width, 3) uint8: the cameras side by side over a caption.

    height is VIEW + CAPTION, and more where there are plans.
    """
    images = []
    for view, topic in zip(views, run.frames, strict=True):
        image = Image.fromarray(np.ascontiguousarray(decode_image(view, topic)))
        images.append(image.resize((VIEW * image.width // image.height // 2 * 2, VIEW), Image.Resampling.LANCZOS))
    height = VIEW + CAPTION + (PLAN_LINES * LINE if run.plan.times else 0)
    page = Image.new('RGB', (sum(i.width for i in images), height), GROUND)
    draw, x = ImageDraw.Draw(page), 0
    for image, topic in zip(images, run.frames, strict=True):
        page.paste(image, (x, 0))
        draw.text(
            (x + 8, 6),
            topic.strip('/').rsplit('/', 1)[0],
            font=_font(13),
            fill='white',
            stroke_width=2,
            stroke_fill='black',
        )
        x += image.width
    time = (stamp - episode.start) * SECONDS
    done = episode.success and time >= episode.time
    status = run.executor.at(stamp)
    state = STATES.get(status.state, ('executing', ''))[0] if status is not None else ''
    draw.text((12, VIEW + 10), episode.instruction, font=_font(19), fill='white')
    draw.text(
        (12, VIEW + 42),
        'done' if done else run.subtask.at(stamp) or '',
        font=_font(16),
        fill='#7fd18b' if done else '#9ecbff',
    )
    plan = run.plan.at(stamp) or '' if run.plan.times else ''
    plan = textwrap.fill(plan, page.width // 7, max_lines=PLAN_LINES, placeholder=' …')
    draw.multiline_text((12, VIEW + CAPTION), plan, font=_font(12), fill='#d7dae0', spacing=3)
    draw.text((page.width - 12, VIEW + 44), f'{state}   {time:5.1f} s', font=_font(14), fill='#b8bcc6', anchor='ra')
    return np.asarray(page)


_fonts: dict[int, Any] = {}


def _font(size: int) -> Any:
    if size not in _fonts:
        _fonts[size] = ImageFont.truetype(findfont('DejaVu Sans'), size)  # comes with matplotlib
    return _fonts[size]


def write_joints(run: Run, episodes: list[EpisodeReport], joint_names: tuple[str, ...], path: Path) -> None:
    """Write a figure: commanded and measured positions, their difference, and the times of hold and braking."""
    origin = episodes[0].start
    t_measured = (np.array(run.measured.times) - origin) * SECONDS
    t_commanded = (np.array(run.commanded.times) - origin) * SECONDS
    measured, commanded = np.array(run.measured.values), np.array(run.commanded.values)
    last = (run.end - origin) * SECONDS
    figure, axes = plt.subplots(4, 2, figsize=(15, 11), sharex=True, layout='constrained')
    panels = list(axes.flat)
    for j, name in enumerate(joint_names[:7]):
        panels[j].plot(t_measured, measured[:, j], color='#d95f02', linewidth=1.0)
        panels[j].plot(*_with_gaps(t_commanded, commanded[:, j]), color='#1f4e9c', linewidth=1.0, linestyle='--')
        panels[j].set_title(name, loc='left', fontsize=10)
        panels[j].set_ylabel('rad')
    error = (
        np.stack([np.interp(t_commanded, t_measured, measured[:, j]) for j in range(len(joint_names))], 1) - commanded
    )
    for e in episodes:
        error[np.abs(t_commanded - (e.start - origin) * SECONDS) < JUMP] = np.nan
    for j, name in enumerate(joint_names):
        panels[7].plot(*_with_gaps(t_commanded, 1e3 * error[:, j]), linewidth=0.8, label=name.rsplit('_', 1)[-1])
    panels[7].set_title('measured - commanded', loc='left', fontsize=10)
    panels[7].set_ylabel('mrad')
    panels[7].legend(ncols=len(joint_names), fontsize=7, loc='lower left', handlelength=1, columnspacing=0.8)
    spans = _spans(run, origin)
    for panel in panels:
        for start, end, state in spans:
            panel.axvspan(start, end, color=STATES[state][1], alpha=0.5, linewidth=0)
        for e in episodes:
            panel.axvline((e.start - origin) * SECONDS, color='black', linewidth=0.8)
            if e.success:
                panel.axvline((e.start - origin) * SECONDS + e.time, color='#2ca02c', linewidth=1.0)
        panel.set_xlim(0, last)
        panel.grid(alpha=0.25)
        panel.margins(y=0.08)
    for e in episodes:
        for panel in panels[:2]:
            panel.text(
                (e.start - origin) * SECONDS + 0.3,
                0.96,
                e.task,
                transform=panel.get_xaxis_transform(),
                va='top',
                fontsize=8,
            )
    for panel in panels[6:]:
        panel.set_xlabel('ROS time since the first episode [s]')
    lines = [
        plt.Line2D([], [], color='#1f4e9c', linestyle='--', label='commanded'),
        plt.Line2D([], [], color='#d95f02', label='measured'),
        plt.Line2D([], [], color='black', label='reset'),
        plt.Line2D([], [], color='#2ca02c', label='success'),
    ]
    shades = [Patch(color=colour, alpha=0.5, label=f'executor {label}') for label, colour in STATES.values()]
    figure.legend(handles=lines + shades, loc='outside upper center', ncols=7, frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _with_gaps(times: np.ndarray, values: np.ndarray, gap: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """Return the curve with NaN where no set-point was sent for longer than gap [s]."""
    holes = np.flatnonzero(np.diff(times) > gap) + 1
    return np.insert(times, holes, np.nan), np.insert(values, holes, np.nan)


def _spans(run: Run, origin: int) -> list[tuple[float, float, int]]:
    """Return spans (start [s], end [s], state) in which the executor did not execute."""
    spans: list[tuple[float, float, int]] = []
    for i, (time, status) in enumerate(zip(run.executor.times, run.executor.values, strict=True)):
        end = run.executor.times[i + 1] if i + 1 < len(run.executor.times) else run.end
        if status.state not in STATES:
            continue
        if spans and spans[-1][2] == status.state and abs(spans[-1][1] - (time - origin) * SECONDS) < 1e-6:
            spans[-1] = (spans[-1][0], (end - origin) * SECONDS, status.state)
        else:
            spans.append(((time - origin) * SECONDS, (end - origin) * SECONDS, status.state))
    return spans
