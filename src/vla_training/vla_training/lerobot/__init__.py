"""Reads and writes LeRobotDataset v3.0 with pyarrow and av alone. Stock lerobot opens the written data sets.

folder/meta/info.json                               frame rate, features, totals, places of files
folder/meta/tasks.parquet, meta/stats.json          instructions; statistics of every column
folder/meta/episodes/chunk-000/file-000.parquet     a row per episode: place of its frames, its statistics
folder/data/chunk-000/file-000.parquet              a row per frame
folder/videos/KEY/chunk-000/file-000.mp4            the frames of many episodes, one after the other
"""

from vla_training.lerobot.layout import Feature
from vla_training.lerobot.reader import Dataset, Episode, EpisodeInfo
from vla_training.lerobot.video import encode_video
from vla_training.lerobot.writer import DatasetWriter

__all__ = ['Dataset', 'DatasetWriter', 'Episode', 'EpisodeInfo', 'Feature', 'encode_video']
