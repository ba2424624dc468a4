"""Samples camera frames of a data set for the training of the image tokenizer."""

import json
from pathlib import Path

from rich.progress import Progress

from vla_training.data.features import GROUNDING_POINTS, image
from vla_training.image_tokenizer.frames import FrameWriter
from vla_training.lerobot import Dataset


def sample_frames(dataset: Path, out: Path, resolution: int, cameras: tuple[str, ...], count: int) -> int:
    """Write about `count` frames, spread evenly over a data set, into a new folder. Return their number.

    Raises ValueError if the data set has fewer frames.
    """
    data = Dataset(dataset)
    every = len(data) * len(cameras) / count
    if every < 1:
        raise ValueError(f'{dataset} has {len(data) * len(cameras)} frames, fewer than {count}: collect more')
    with FrameWriter(out, resolution, cameras) as writer, Progress(transient=True) as bar:
        line = bar.add_task('frames', total=count)
        due = 0.0  # number of frames to skip until the next one
        for i in range(len(data.episodes)):
            episode = data.episode(i)
            for camera in cameras:
                for t, picture in enumerate(episode.frames(image(camera))):
                    due -= 1
                    if due < 0:
                        due += every
                        column = episode.columns.get(GROUNDING_POINTS)
                        points = json.loads(column[t]).get(camera) if column else None
                        writer.add(picture, camera, i, points=points)
                        bar.advance(line)
        return writer.frames
