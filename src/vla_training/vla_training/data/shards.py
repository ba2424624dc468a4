"""Reads and writes tokenized data for training: about half a kilobyte a frame, in safetensors files of at most 15 MB.

A folder of shards is complete. It holds shard-* (frames of episodes), static-* (static-scene samples; glances-* in
folders of earlier versions), config.json, the tokenizers and the statistics. An episode is never split over shards.
Tensors of a shard with N frames:

    codes        (N, views, tokens) uint16   image codes of every camera, in prompt order
    state        (N, state_dim) uint16       bins
    action       (N, horizon, action_dim) uint16  bins of the chunk that follows; NOWHERE: no action label
    points       (N, views, points, 2) uint16  bins of the grounding points; NOWHERE: unknown
    future       (N,) int32                  row of the frame at the end of the chunk
    episode      (N,) int32                  number of the episode in the data set
    instruction  (N,) int32                  row of `texts`
    plan         (N,) int32                  row of `texts`; -1 where there is none
    exact        (N, horizon, action_dim) uint16  the chunk in steps of 1 / LEVELS of its range
    sent         (N, horizon, action_dim) uint16  the set-points that were sent, of the world mode
    ahead        (N, horizon) int32          rows of the frames after each step
    trace        (N, LINE, 2) uint16         bins of the way of the tool in the first view, at equal distances
    vague        (N,) int32                  row of `texts`: the instruction without the names of objects; -1: none
    depth        (N, codes) uint16           depth codes of the first view
    lined        (N, tokens) uint16          image codes of the first view with the line `drawn`
    drawn        (N, LINE, 2) uint16         as `trace`: what was drawn
    text_ids     (K,) int32                  ids of all texts, one after the other
    text_ends    (M,) int32                  end of each text in text_ids

Those from `exact` to `drawn` may be missing: then all their numbers are NOWHERE, or -1.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vla_model.checkpoints import checkpoint
from vla_model.config import ModelConfig, read_json
from vla_model.tokens.text_tokenizer import TextTokenizer

MAX_BYTES = 15_000_000
PER_FRAME = ('codes', 'state', 'action', 'points', 'future', 'episode', 'instruction', 'plan')
OPTIONAL = ('exact', 'sent', 'ahead', 'trace', 'vague', 'depth', 'lined', 'drawn')
DTYPES = dict.fromkeys(
    ('codes', 'state', 'action', 'points', 'exact', 'sent', 'trace', 'depth', 'lined', 'drawn'), torch.uint16
)
NOWHERE = 65535  # a value that is not known
LEVELS = 65534  # of `exact` and `sent`: 0 is -1, LEVELS is +1
LINE = 16  # points of a way
DEPTH_CODES = 100  # of a depth map
STATIC, STATIC_BEFORE = 'static-', 'glances-'  # first letters of the files of static-scene samples, now and earlier


@dataclass(frozen=True)
class Tokens:
    """All shards of a folder as one. Ids of rows and texts are int64 and count over all shards."""

    config: ModelConfig
    text: TextTokenizer
    folder: Path
    codes: Tensor  # (N, views, tokens) int32, as `state`, `action` and `points`
    state: Tensor
    action: Tensor  # -1: unknown
    points: Tensor  # -1: unknown
    future: Tensor  # (N,) int64
    static: Tensor  # (N,) bool: a static-scene sample
    episode: Tensor
    instruction: Tensor
    plan: Tensor
    exact: Tensor  # -1: unknown, as `sent`, `trace`, `depth`, `lined` and `drawn`
    sent: Tensor
    ahead: Tensor  # (N, horizon) int64; -1: unknown
    trace: Tensor
    vague: Tensor  # (N,) int64
    depth: Tensor
    lined: Tensor
    drawn: Tensor
    texts: list[list[int]]  # ids

    def __len__(self) -> int:
        return len(self.codes)


def shard_path(folder: Path, index: int) -> Path:
    return folder / f'shard-{index:05d}.safetensors'


def static_path(folder: Path, seed: int, index: int, *, near: bool, labelled: bool) -> Path:
    """Return the file of static-scene samples whose first scene has this seed; one of an earlier version if it exists.

    near: the arm starts near the object. labelled: samples have action labels.
    """
    end = f'{seed:07d}-{index:03d}.safetensors'
    before = folder / f'{STATIC_BEFORE}{"over-" * near}{"answers-" * labelled}{end}'
    return before if before.exists() else folder / f'{STATIC}{"near-" * near}{"labelled-" * labelled}{end}'


def bytes_of(config: ModelConfig) -> int:
    """Return the size of a frame in a shard, without its texts [byte]."""
    robot, tokens = config.robot, config.image_tokenizer.tokens
    values = len(robot.cameras) * tokens + robot.state_dim + robot.chunk_tokens + robot.point_tokens
    values += 2 * robot.chunk_tokens + 4 * LINE + tokens + DEPTH_CODES  # at most: these are optional
    return 2 * values + 4 * (5 + robot.horizon)


def write_shard(path: Path, tensors: Mapping[str, Tensor]) -> int:
    """Write one shard, whole or not at all. Return its size [byte]. Raises ValueError if it is too large."""
    converted = {name: t.to(DTYPES.get(name, torch.int32)).contiguous() for name, t in tensors.items()}
    size = sum(t.numel() * t.element_size() for t in converted.values())
    if size > MAX_BYTES:
        raise ValueError(f'{path.name} would have {size} bytes, at most {MAX_BYTES}: give it fewer episodes')
    temporary = path.with_suffix('.writing')
    save_file(converted, temporary)
    temporary.replace(path)
    return size


def read_config(folder: Path) -> ModelConfig:
    """Read config.json of a folder of shards. Raises FileNotFoundError or ValueError naming the file and the fault."""
    return checkpoint.read_config(folder, read_json(folder / 'config.json'))


def read(folder: Path, *others: Path) -> Tokens:
    """Read the shards of one or several folders as one.

    others: further folders, for the same model and with the same statistics (tokenize --like --keep-statistics).
    Raises FileNotFoundError or ValueError naming the file and the fault.
    """
    config = read_config(folder)
    text = TextTokenizer.load(folder / 'tokenizer.json')
    files: list[list[Path]] = []  # episodes are counted from 0 in each of these
    for each in (folder, *others):
        if each != folder:
            _check_alike(folder, config, each)
        paths = sorted(each.glob('shard-*.safetensors'))
        if not paths:
            raise FileNotFoundError(f'{each} has no shard-*.safetensors: make them with ./vla train tokenize')
        static = (path for start in (STATIC_BEFORE, STATIC) for path in sorted(each.glob(f'{start}*.safetensors')))
        files += [paths, *([path] for path in static)]
    begins = {paths[0] for paths in files}
    parts: dict[str, list[Tensor]] = {name: [] for name in (*PER_FRAME, *OPTIONAL)}
    texts: list[list[int]] = []
    statics: list[Tensor] = []
    rows = episodes = first = 0
    for path in (path for paths in files for path in paths):
        if path in begins:
            first = episodes
        shard = _read_shard(path, config)
        shard['episode'] = shard['episode'] + first
        episodes = max(episodes, int(shard['episode'].max()) + 1)
        starts = [0, *shard['text_ends'].tolist()]
        ids = shard['text_ids'].to(torch.int64).tolist()
        own = [ids[a:b] for a, b in pairwise(starts)]
        for name, offset in {'plan': len(texts), 'vague': len(texts), 'ahead': rows}.items():
            found = shard[name].long()
            shard[name] = torch.where(found < 0, found, found + offset)
        shard['instruction'] = shard['instruction'].long() + len(texts)
        shard['future'] = shard['future'].long() + rows
        for name in ('action', 'points', *(n for n in OPTIONAL if n in DTYPES)):
            found = shard[name].to(torch.int32)
            shard[name] = torch.where(found == NOWHERE, -1, found)
        for name in (*PER_FRAME, *OPTIONAL):
            parts[name].append(shard[name].to(torch.int32) if name in DTYPES else shard[name].long())
        statics.append(torch.full((len(shard['codes']),), path.name.startswith((STATIC, STATIC_BEFORE))))
        texts += own
        rows += len(shard['codes'])
    tensors = {name: torch.cat(p) for name, p in parts.items()}
    return Tokens(config, text, folder, **tensors, static=torch.cat(statics), texts=texts)


def _check_alike(folder: Path, config: ModelConfig, other: Path) -> None:
    found = read_config(other)
    for name in ('vocabulary', 'image_tokenizer', 'robot', 'statistics'):
        if getattr(found, name) != getattr(config, name):
            raise ValueError(
                f'{other} has another {name.replace("_", " ")} than {folder}: tokenize it with --like and a checkpoint '
                'that was trained with the other, and --keep-statistics'
            )
    same = (read_json(each / 'tokenizer.json') for each in (folder, other))
    if next(same) != next(same):
        raise ValueError(f'{other} has another tokenizer.json than {folder}')


def _read_shard(path: Path, config: ModelConfig) -> dict[str, Tensor]:
    try:
        shard = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f'{path} is damaged ({error}): tokenize the data set again') from None
    robot = config.robot
    chunk = (robot.horizon, robot.action_dim)
    expected = {
        'codes': (len(robot.cameras), config.image_tokenizer.tokens),
        'state': (robot.state_dim,),
        'action': chunk,
        'points': (len(robot.cameras), robot.points, 2),
        'exact': chunk,
        'sent': chunk,
        'ahead': (robot.horizon,),
        'trace': (LINE, 2),
        'depth': (DEPTH_CODES,),
        'lined': (config.image_tokenizer.tokens,),
        'drawn': (LINE, 2),
    }
    for name in (*PER_FRAME, 'text_ids', 'text_ends'):
        if name not in shard:
            raise ValueError(f'{path} lacks {name}: tokenize the data set again')
    for name in OPTIONAL:
        unknown = NOWHERE if name in DTYPES else -1
        shard.setdefault(name, torch.full((len(shard['codes']), *expected.get(name, ())), unknown))
    for name in (*PER_FRAME, *OPTIONAL):
        if tuple(shard[name].shape[1:]) != expected.get(name, ()):
            raise ValueError(
                f'{path}: {name} is {tuple(shard[name].shape)}, config.json has (frames, '
                f'{", ".join(map(str, expected.get(name, ())))}): the shard is of another configuration'
            )
    n = len(shard['codes'])
    if any(len(shard[name]) != n for name in (*PER_FRAME, *OPTIONAL)) or (
        n and not 0 <= int(shard['future'].max()) < n
    ):
        raise ValueError(f'{path}: its tensors have different numbers of frames: tokenize the data set again')
    return shard
