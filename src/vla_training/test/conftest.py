"""A tiny configuration, and tokens of it that can be learned: the chunk follows from the state."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from vla_model.checkpoints import nano
from vla_model.checkpoints.checkpoint import IMAGE_FILE
from vla_model.config import ImageTokenizerConfig, ModelConfig
from vla_model.image_tokenizer import ImageTokenizer
from vla_model.tokens.text_tokenizer import NANO_FILE, TextTokenizer
from vla_model.tokens.vocabulary import Vocabulary
from vla_training.data import shards
from vla_training.lerobot import layout

torch.set_num_threads(1)  # threads of several tests' processes would spin on each other


def tiny_config() -> ModelConfig:
    text = TextTokenizer.load(NANO_FILE).size
    base = nano.config(text)
    vocabulary = Vocabulary.small(text, codes=16, bins=64)
    return replace(
        base,
        vocabulary=vocabulary,
        network=replace(base.network, d_model=32, n_layers=2, n_heads=2, n_kv_heads=2, mlp_hidden_size=64,
                        vocab_size=vocabulary.size),
        image_tokenizer=ImageTokenizerConfig(32, 4, 2, 4, (1, 1, 1, 2, 2), (0, 0, 0, 1, 1), (1, 1, 1, 2, 2),
                                             (0, 0, 0, 1, 1)),
        robot=replace(base.robot, horizon=4, max_prompt_tokens=128, points=2),
    )  # fmt: skip


@pytest.fixture(scope='session')
def config() -> ModelConfig:
    return tiny_config()


@pytest.fixture(scope='session')
def tokens_folder(tmp_path_factory, config):
    """Two shards of four episodes of twelve frames."""
    folder = tmp_path_factory.mktemp('tokens')
    rng = np.random.default_rng(0)
    text = TextTokenizer.load(NANO_FILE)
    texts = ['press the red button', 'put the tomato in the blue bowl', 'My task is to press the red button.']
    ids = [text.encode(t) for t in texts]
    for index in range(2):
        state = rng.integers(8, 56, (48, 8))
        points = torch.from_numpy(state.reshape(48, 2, 2, 2).copy())
        points[::3, :, 1] = shards.NOWHERE
        shards.write_shard(
            shards.shard_path(folder, index),
            {
                'codes': torch.from_numpy(rng.integers(0, 16, (48, 2, 4))),
                'state': torch.from_numpy(state),
                'action': torch.from_numpy(np.repeat(state[:, None], 4, 1)),
                'points': points,
                'future': torch.arange(48) // 12 * 12 + (torch.arange(48) % 12 + 4).clamp(max=11),
                'episode': torch.arange(48) // 12 + 4 * index,
                'instruction': torch.arange(48) // 12 % 2,
                'plan': torch.where(torch.arange(48) % 3 == 0, -1, 2),
                'text_ids': torch.tensor([i for t in ids for i in t]),
                'text_ends': torch.tensor([len(t) for t in ids]).cumsum(0),
            },
        )
    (folder / 'config.json').write_text(config.to_json())
    text.tokenizer.save(str(folder / 'tokenizer.json'))
    images = ImageTokenizer(config.image_tokenizer)
    nano.init_weights(images, 0)
    save_file(images.state_dict(), folder / IMAGE_FILE)
    return folder


@pytest.fixture(scope='session')
def second_task():
    """Gives a data set (of one file) a second instruction, from a frame of an episode on, as stock lerobot does it:
    the frames have its number, the list of the episode has both in any order."""

    def change(folder, episode: int, frame: int, task: str) -> None:
        tasks = pq.read_table(folder / layout.TASKS).column(1).to_pylist()
        pq.write_table(layout.tasks_table([*tasks, task]), folder / layout.TASKS)
        data, rows = folder / 'data/chunk-000/file-000.parquet', folder / 'meta/episodes/chunk-000/file-000.parquet'
        table = pq.read_table(data)
        after = (np.asarray(table['episode_index']) == episode) & (np.asarray(table['frame_index']) >= frame)
        numbers = np.where(after, len(tasks), np.asarray(table['task_index']))
        place = table.schema.get_field_index('task_index')
        pq.write_table(table.set_column(place, 'task_index', pa.array(numbers)), data)
        listed = pq.read_table(rows).to_pylist()
        listed[episode]['tasks'].insert(0, task)
        pq.write_table(pa.Table.from_pylist(listed), rows)

    return change


@pytest.fixture(scope='session')
def tokens(tokens_folder):
    return shards.read(tokens_folder)
