"""Encodes the video of an episode once, concatenates videos without encoding again, and decodes by time."""

import io
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np
from av.video.reformatter import VideoReformatter

# A key frame every two frames: any frame is decoded from at most one other.
_OPTIONS = {'g': '2', 'bf': '0', 'crf': '20', 'preset': 'veryfast'}


class VideoEncoder:
    """Encodes an mp4 (h264, yuv420p) frame by frame in one thread. Raises ValueError for odd sizes."""

    def __init__(self, height: int, width: int, fps: int) -> None:
        if height % 2 or width % 2:
            raise ValueError(f'h264 needs even sizes, the frames are {width} x {height}: crop or resize them')
        self.height, self.width, self._step, self._count = height, width, Fraction(1, fps), 0
        self._buffer = io.BytesIO()
        self._container = av.open(self._buffer, 'w', format='mp4')
        stream: Any = self._container.add_stream('libx264', rate=fps, options=_OPTIONS)
        stream.width, stream.height, stream.pix_fmt = width, height, 'yuv420p'
        stream.thread_count = 1
        stream.codec_context.time_base = self._step
        self._stream = stream

    def add(self, pixels: np.ndarray) -> None:
        """Add a frame (H, W, 3) uint8 RGB."""
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format='rgb24')
        frame.pts, frame.time_base = self._count, self._step
        self._container.mux(self._stream.encode(frame))
        self._count += 1

    def finish(self) -> bytes:
        """Return the content of the file. The encoder cannot be used any more."""
        self._container.mux(self._stream.encode(None))
        self._container.close()
        return self._buffer.getvalue()


def encode_video(frames: np.ndarray, fps: int) -> bytes:
    """Encode frames (T, H, W, 3) uint8 RGB, H and W even, as mp4 (h264, yuv420p) in one thread.

    Raises ValueError for frames of another form.
    """
    frames = np.asarray(frames)
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or len(frames) == 0:
        raise ValueError(f'frames must be (T, H, W, 3) uint8 RGB, got {frames.shape} {frames.dtype}')
    encoder = VideoEncoder(frames.shape[1], frames.shape[2], fps)
    for pixels in frames:
        encoder.add(pixels)
    return encoder.finish()


def probe(video: bytes) -> tuple[int, int, int, bytes]:
    """Return (number of frames, height, width, codec header) of a video. Raises ValueError for other data.

    Videos in one file must have the same codec header.
    """
    try:
        with av.open(io.BytesIO(video), 'r') as container:
            stream = container.streams.video[0]
            count = sum(packet.dts is not None for packet in container.demux(stream))
            return count, stream.height, stream.width, bytes(stream.codec_context.extradata or b'')
    except (av.error.FFmpegError, IndexError) as error:
        raise ValueError(f'this is no video ({error})') from error


def concatenate(videos: list[Path], target: Path, fps: int) -> None:
    """Write all videos into one mp4, frame by frame at 1 / fps, without encoding again."""
    step, count = Fraction(1, fps), 0
    with av.open(str(target), 'w', format='mp4', options={'movflags': 'faststart'}) as output:
        out: Any = None
        for path in videos:
            with av.open(str(path), 'r') as container:
                stream = container.streams.video[0]
                if out is None:
                    out = output.add_stream_from_template(stream)
                    out.time_base = step
                for packet in container.demux(stream):
                    if packet.dts is None:
                        continue  # the end of a file
                    packet.time_base, packet.pts, packet.dts, packet.duration = step, count, count, 1
                    packet.stream = out
                    output.mux(packet)
                    count += 1


def decode(source: Path | io.BytesIO, start: float, count: int, fps: float) -> Iterator[np.ndarray]:
    """Yield `count` frames from time start [s] on, (H, W, 3) uint8 RGB. Raises ValueError naming the file."""
    reformatter, k = VideoReformatter(), 0
    try:
        with av.open(source if isinstance(source, io.BytesIO) else str(source), 'r') as container:
            stream: Any = container.streams.video[0]
            if start > 0:
                container.seek(int((start - 0.5 / fps) / stream.time_base), stream=stream)
            for frame in container.decode(stream):
                at = round((float(frame.pts * stream.time_base) - start) * fps)
                if at > k:
                    break
                if at == k:
                    yield _rgb(reformatter, frame)
                    k += 1
                    if k == count:
                        return
    except (av.error.FFmpegError, IndexError, OSError) as error:
        raise ValueError(f'{source} cannot be decoded ({error}): copy or make the dataset again') from error
    raise ValueError(f'{source} lacks the frame at {start + k / fps:.3f} s: copy or make the dataset again')


def key_frames(video: bytes) -> np.ndarray:
    """Return the key frames (every second frame), (N, H, W, 3) uint8 RGB, for statistics at half the work."""
    reformatter = VideoReformatter()
    with av.open(io.BytesIO(video), 'r') as container:
        stream = container.streams.video[0]
        stream.codec_context.skip_frame = 'NONKEY'
        return np.stack([_rgb(reformatter, frame) for frame in container.decode(stream)])


def _rgb(reformatter: VideoReformatter, frame: av.VideoFrame) -> np.ndarray:
    """Return a frame as (H, W, 3) uint8. Making a reformatter takes as long as decoding, so all frames share one."""
    return reformatter.reformat(frame, format='rgb24').to_ndarray()
