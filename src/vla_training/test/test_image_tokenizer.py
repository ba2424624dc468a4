"""Frames go through files, the losses say what they should, and a run learns and goes on where it was cut."""

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from vla_model.config import ImageTokenizerConfig
from vla_training.image_tokenizer.frames import FrameSet, FrameWriter
from vla_training.image_tokenizer.grounding import grounding_loss
from vla_training.image_tokenizer.losses import Foreground, ImageLosses, code_losses, reconstruction_loss, signs
from vla_training.image_tokenizer.metrics import CodeUsage, psnr, ssim
from vla_training.image_tokenizer.state import load_image_tokenizer
from vla_training.image_tokenizer.trainer import (
    ImageTokenizerTrainer,
    Settings,
    train_image_tokenizer,
)

SIDE = 32
CONFIG = ImageTokenizerConfig(SIDE, 8, 4, 6, (1, 2, 2), (0, 1, 1), (1, 2, 2), (0, 1, 1))
SETTINGS = Settings(batch=8, warmup=2, log_every=4, save_every=4, shift=2, amp=False, losses=ImageLosses())


def scene(rng: np.random.Generator, side: int = SIDE) -> np.ndarray:
    """A brown table with a small red square somewhere."""
    picture = np.full((side, side, 3), (180, 140, 100), np.uint8)
    y, x = rng.integers(2, side - 6, 2)
    picture[y : y + 4, x : x + 4] = (220, 30, 30)
    return picture


def write(folder, weights=False, **kwargs):
    rng = np.random.default_rng(0)
    with FrameWriter(folder, SIDE, ('front', 'wrist'), **kwargs) as writer:
        for i in range(60):
            weight = rng.integers(0, 256, (SIDE, SIDE), dtype=np.uint8) if weights else None
            writer.add(scene(rng), ('front', 'wrist')[i % 2], i // 10, weight)
    return folder


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp('frames'))


def write_with_points(folder, count=60):
    """Scenes whose red square is told, in which a blue one is only spoken of now and then, out of sight."""
    rng = np.random.default_rng(0)
    with FrameWriter(folder, SIDE, ('front',)) as writer:
        for i in range(count):
            picture = scene(rng)
            y, x = (float(v.mean()) for v in np.nonzero(picture[..., 1] == 30))
            writer.add(
                picture, 'front', i // 10, points={'red': (x, y)} | ({'blue': (99.0, 5.0)} if i % 3 == 0 else {})
            )
    return folder


# ---- files of frames


def test_frames_come_back_as_they_were_but_for_jpeg(tmp_path):
    write(tmp_path, weights=True, max_bytes=230_000)
    assert len(list(tmp_path.glob('frames-*'))) > 1
    assert all(p.stat().st_size < 230_000 for p in tmp_path.iterdir())
    found = FrameSet.load(tmp_path)
    assert found.images.shape == (60, 3, SIDE, SIDE) and found.cameras == ('front', 'wrist')
    assert found.camera.tolist() == [0, 1] * 30 and found.episode.tolist() == [i // 10 for i in range(60)]
    rng = np.random.default_rng(0)
    for image, weight in zip(found.images, found.weight, strict=True):
        assert np.array_equal(weight, rng.integers(0, 256, (SIDE, SIDE), dtype=np.uint8))
        expected = torch.from_numpy(scene(rng)).permute(2, 0, 1)
        assert psnr(image[None] / 255, expected[None] / 255) > 35


def test_frames_of_other_sizes_are_preprocessed_as_the_policy_does(tmp_path):
    with FrameWriter(tmp_path, SIDE, ('front',)) as writer:
        writer.add(np.full((48, 64, 3), 200, np.uint8), 'front', 0)
    image = FrameSet.load(tmp_path).images[0].float()
    assert abs(image[:, SIDE // 2].mean() - 200) < 2 and image[:, 0].mean() < 10  # black bars


def test_points_come_back_in_pixels_of_the_tokenizer(tmp_path):
    frames = FrameSet.load(write_with_points(tmp_path / 'square'))
    assert frames.names == ('blue', 'red') and frames.points.shape == (60, 2, 2)
    assert (~frames.points[:, 0].isnan()).all(1).tolist() == [i % 3 == 0 for i in range(60)]
    red = frames.images.float()[:, 1] < 100
    for i in range(60):
        y, x = (float(v.float().mean()) for v in torch.nonzero(red[i], as_tuple=True))
        assert torch.allclose(frames.points[i, 1], torch.tensor([x, y]), atol=0.6)
    with FrameWriter(tmp_path / 'wide', SIDE, ('front',)) as writer:  # twice as large and wide: bars above and below
        writer.add(np.zeros((32, 64, 3), np.uint8), 'front', 0, points={'corner': (0, 0), 'middle': (31.5, 15.5)})
    assert FrameSet.load(tmp_path / 'wide').points[0].tolist() == [[-0.25, 7.75], [15.5, 15.5]]


def test_whole_episodes_are_held_out(folder):
    frames = FrameSet.load(folder)
    train, held = frames.split()
    assert len(train) + len(held) == len(frames)
    assert frames.episode[held].unique().tolist() == [5]
    with pytest.raises(ValueError, match='are of one episode'):
        replace(frames, episode=torch.zeros(60, dtype=torch.int64)).split()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ((np.zeros((8, 8, 3), np.uint8), 'side', 0), "camera 'side' is none of"),
        ((np.zeros((8, 8, 3), np.float32), 'front', 0), 'expected .* uint8'),
        ((np.zeros((8, 8), np.uint8), 'front', 0), 'expected .* uint8'),
        ((np.zeros((8, 8, 3), np.uint8), 'front', 0, np.zeros((3, 3), np.uint8)), 'weight of a frame'),
    ],
)
def test_a_bad_frame_is_named(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        FrameWriter(tmp_path, SIDE, ('front',)).add(*arguments)


def test_bad_folders_are_named(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match='no frames-'):
        FrameSet.load(tmp_path)
    with pytest.raises(ValueError, match='holds frames already'):
        FrameWriter(folder, SIDE, ('front',))
    content = next(folder.glob('frames-*')).read_bytes()
    for damaged in (content[:100], content[:-1000], content.replace(b'\xff\xd8', b'\x00\x00')):
        (tmp_path / 'frames-00000.safetensors').write_bytes(damaged)
        with pytest.raises(ValueError, match=r'frames-00000\.safetensors is damaged'):
            FrameSet.load(tmp_path)


def test_frames_spread_over_a_dataset(tmp_path):
    pytest.importorskip('pyarrow')
    from vla_training.data.features import image
    from vla_training.image_tokenizer.sample_frames import sample_frames
    from vla_training.lerobot import DatasetWriter, Feature, encode_video

    features = {image('front'): Feature('video', (64, 64, 3), ('height', 'width', 'channels'))}
    features['observation.state'] = Feature('float32', (1,), ('x',))
    writer = DatasetWriter(tmp_path / 'data', 10, 'arm', features)
    pictures = [[scene(np.random.default_rng(10 * e + i), 64) for i in range(6)] for e in range(2)]
    for episode in pictures:
        video = {image('front'): encode_video(np.stack(episode), 10)}
        writer.add_episode({'observation.state': np.zeros((6, 1), np.float32)}, video, 'go')
    writer.close()
    assert sample_frames(tmp_path / 'data', tmp_path / 'frames', SIDE, ('front',), 4) == 4
    found = FrameSet.load(tmp_path / 'frames')
    assert found.episode.tolist() == [0, 0, 1, 1]
    for got, (episode, i) in zip(found.images, ((0, 0), (0, 3), (1, 0), (1, 3)), strict=True):
        expected = np.asarray(Image.fromarray(pictures[episode][i]).resize((SIDE, SIDE), Image.BICUBIC))
        assert psnr(got[None] / 255, torch.from_numpy(expected.copy()).permute(2, 0, 1)[None] / 255) > 20


# ---- losses and metrics


def test_small_and_rare_objects_count_most(folder):
    frames = FrameSet.load(folder)
    foreground = Foreground(frames, frames.split()[0], ImageLosses(), torch.device('cpu'))
    weight = foreground.weight(frames.images, frames.camera, None)
    assert weight.shape == (60, 1, SIDE, SIDE)
    red = frames.images[:, 0] > frames.images[:, 1].long() + 120
    assert weight[:, 0][red].mean() > 5 * weight[:, 0][~red].mean()
    given = torch.zeros(60, SIDE, SIDE, dtype=torch.uint8)
    given[:, 3, 4] = 255
    weight = foreground.weight(frames.images, frames.camera, given)
    assert weight[0, 0, 3, 4] == 1 + ImageLosses().rare and weight[0, 0, 0, 0] == 1


def test_the_loss_is_zero_for_the_picture_itself_and_grows_where_it_counts():
    torch.manual_seed(0)
    real, weight = torch.rand(2, 3, 16, 16) * 2 - 1, torch.ones(2, 1, 16, 16)
    assert reconstruction_loss(real, real, weight, ImageLosses()) == 0
    weight[:, :, :4] = 10
    here, there = real.clone(), real.clone()
    here[:, :, 1, 5] += 0.5
    there[:, :, 10, 5] += 0.5
    losses = [reconstruction_loss(x, real, weight, ImageLosses()) for x in (here, there)]
    assert losses[0] > 5 * losses[1] > 0


def test_signs_are_those_of_the_quantizer_and_pass_gradients_on():
    z = torch.tensor([-2.0, -1e-9, 0.0, 1e-9, 3.0], requires_grad=True)
    out = signs(z)
    assert out.tolist() == [-1, -1, -1, 1, 1]
    (out * torch.arange(5.0)).sum().backward()
    assert z.grad.tolist() == [0, 1, 2, 3, 4]


def test_entropy_rewards_sure_bits_that_are_all_used():
    losses = ImageLosses()
    torch.manual_seed(0)
    sure = torch.where(torch.rand(8, 4, 6, 6) > 0.5, 1.0, -1.0)
    commitment, best = code_losses(sure, losses)
    assert commitment == 0 and best == pytest.approx(-np.log(2), abs=0.02)
    unsure, collapsed = code_losses(sure * 0.01, losses)[1], code_losses(torch.ones_like(sure), losses)[1]
    assert unsure == pytest.approx(0, abs=0.01) and collapsed == pytest.approx(0, abs=0.01)


def test_ssim_and_psnr_follow_their_definitions():
    rng = np.random.default_rng(0)
    a = rng.random((1, 1, 13, 12))
    b = np.clip(a + 0.1 * rng.standard_normal(a.shape), 0, 1)
    line = np.exp(-0.5 * ((np.arange(11) - 5) / 1.5) ** 2)
    window = np.outer(line, line) / line.sum() ** 2
    values = []
    for y in range(3):
        for x in range(2):
            p, q = a[0, 0, y : y + 11, x : x + 11], b[0, 0, y : y + 11, x : x + 11]
            mp, mq = (window * p).sum(), (window * q).sum()
            vp, vq = (window * (p - mp) ** 2).sum(), (window * (q - mq) ** 2).sum()
            cov = (window * (p - mp) * (q - mq)).sum()
            values.append((2 * mp * mq + 1e-4) * (2 * cov + 9e-4) / ((mp**2 + mq**2 + 1e-4) * (vp + vq + 9e-4)))
    ta, tb = (torch.from_numpy(v).float() for v in (a, b))
    assert ssim(ta, tb).item() == pytest.approx(np.mean(values), abs=1e-4)
    assert ssim(ta, ta).item() == pytest.approx(1)
    assert psnr(ta, tb).item() == pytest.approx(-10 * np.log10(np.mean((a - b) ** 2)), abs=1e-3)
    with pytest.raises(ValueError, match='at least 11 px'):
        ssim(ta[..., :10], tb[..., :10])


def test_code_usage():
    every = CodeUsage.of(torch.arange(16), 4)
    assert (every.used, every.dead_bits) == (16, 0)
    assert every.perplexity == pytest.approx(16) and every.bits == pytest.approx(4)
    one = CodeUsage.of(torch.full((5, 5), 3), 4)
    assert (one.used, one.dead_bits) == (1, 4) and one.perplexity == pytest.approx(1)


# ---- runs


def test_it_learns_and_leaves_a_tokenizer(folder, tmp_path):
    settings = replace(SETTINGS, losses=ImageLosses(rare=5.0), log_every=20, save_every=1000)
    report = train_image_tokenizer(folder, tmp_path, config=CONFIG, steps=100, batch=8, lr=5e-3, settings=settings)
    with (tmp_path / 'log.csv').open() as file:
        losses = [float(row['loss']) for row in csv.DictReader(file)]
    assert losses[-1] < 0.5 * losses[0]
    assert report.frames == 10 and report.steps == 100 and report.psnr > 12
    assert 1 <= report.codes.perplexity <= report.codes.used <= 64
    for name in ('report.json', 'loss.png', 'pictures.png'):
        assert (tmp_path / name).stat().st_size > 0
    tokenizer = load_image_tokenizer(tmp_path)
    assert tokenizer.config == CONFIG
    frames = FrameSet.load(folder)
    real = frames.images[frames.split()[1]].float() / 127.5 - 1
    with torch.inference_mode():
        made = tokenizer.decode(tokenizer.encode(real)).clamp(-1, 1)
    assert psnr((made + 1) / 2, (real + 1) / 2).mean().item() == pytest.approx(report.psnr, abs=0.01)


def test_a_run_that_was_cut_continues_as_if_it_had_not_been(folder, tmp_path):
    frames, settings = FrameSet.load(folder), replace(SETTINGS, steps=6)
    whole = ImageTokenizerTrainer(frames, tmp_path / 'whole', CONFIG, settings)
    whole.run()
    cut = ImageTokenizerTrainer(frames, tmp_path / 'cut', CONFIG, settings)
    for _ in range(3):
        cut.train_step()
        cut.step += 1
    cut.save()
    (tmp_path / 'cut/state').rename(tmp_path / 'cut/.state-old')  # as if it had been cut while it saved
    again = ImageTokenizerTrainer(frames, tmp_path / 'cut', CONFIG, settings)
    assert again.step == 3
    again.run()
    for name, value in whole.parameters.items():
        assert torch.equal(value, again.parameters[name]), name
        assert torch.equal(whole.average[name], again.average[name]), name


def test_a_run_is_not_continued_with_other_settings(folder, tmp_path):
    frames = FrameSet.load(folder)
    trainer = ImageTokenizerTrainer(frames, tmp_path, CONFIG, SETTINGS)
    trainer.train_step()
    trainer.save()
    with pytest.raises(ValueError, match='trained with other lr: give another folder'):
        ImageTokenizerTrainer(frames, tmp_path, CONFIG, replace(SETTINGS, lr=0.5))
    assert ImageTokenizerTrainer(frames, tmp_path, CONFIG, replace(SETTINGS, lr=0.5), resume=False).step == 0
    (tmp_path / 'state/state-00000.safetensors').write_bytes(b'nothing')
    with pytest.raises(ValueError, match=r'state-00000\.safetensors is damaged'):
        ImageTokenizerTrainer(frames, tmp_path, CONFIG, SETTINGS)


def test_bad_settings_and_frames_are_named(folder, tmp_path):
    for change, message in (({'steps': 0}, 'steps must be 1'), ({'lr': 0.0}, 'lr must be above 0')):
        with pytest.raises(ValueError, match=message):
            replace(SETTINGS, **change)
    with pytest.raises(ValueError, match='frames are 32 px, the tokenizer takes 64'):
        ImageTokenizerTrainer(FrameSet.load(folder), tmp_path, replace(CONFIG, resolution=64), SETTINGS)
    with pytest.raises(FileNotFoundError, match=r'config.json is missing'):
        load_image_tokenizer(tmp_path / 'none')


# ---- codes that say where things are


def test_the_grounding_loss_counts_points_in_the_image():
    places = torch.tensor([[[0.0, 0.5], [np.nan, np.nan]], [[0.2, -3.0], [-0.4, 0.0]]])
    predicted = torch.tensor([[[0.1, 0.5], [9.0, 9.0]], [[9.0, 9.0], [-0.4, 0.4]]], requires_grad=True)
    loss, off = grounding_loss(predicted, places)
    assert float(loss.detach()) == pytest.approx((0.1 + 0.4) / 4) and float(off.detach()) == pytest.approx(0.125)
    loss.backward()
    assert torch.isfinite(predicted.grad).all() and not predicted.grad[0, 1].any() and not predicted.grad[1, 0].any()
    assert float(grounding_loss(predicted, torch.full_like(places, np.nan))[0]) == 0


def test_points_move_with_the_image(tmp_path):
    trainer = ImageTokenizerTrainer(
        FrameSet.load(write_with_points(tmp_path / 'f')), tmp_path / 'run', CONFIG, SETTINGS
    )
    for trainer.step in range(3):
        pixels, _, places = trainer._batch()
        for picture, (_, place) in zip(pixels, places, strict=True):
            y, x = (float(v.float().mean()) for v in torch.nonzero(picture[1] < -0.3, as_tuple=True))
            assert torch.allclose((place + 1) / 2 * SIDE - 0.5, torch.tensor([x, y]), atol=1.0)


@pytest.mark.slow
def test_it_learns_grounding_points_and_continues_where_it_was_cut(tmp_path):
    frames = FrameSet.load(write_with_points(tmp_path / 'f'))
    settings = replace(SETTINGS, steps=40, lr=3e-3)
    whole = ImageTokenizerTrainer(frames, tmp_path / 'whole', CONFIG, settings)
    whole.run()
    report = whole.finish()
    off = [float(row['off']) for row in csv.DictReader((tmp_path / 'whole' / 'log.csv').open())]
    assert off[-1] < 0.6 * off[0] and report.off < 0.2
    first = ImageTokenizerTrainer(frames, tmp_path / 'cut', CONFIG, settings)
    for first.step in range(20):
        first.train_step()
    first.step = 20
    first.save()
    second = ImageTokenizerTrainer(frames, tmp_path / 'cut', CONFIG, settings)
    second.run()
    assert all(torch.allclose(p, second.parameters[n], atol=1e-5) for n, p in whole.parameters.items())
    assert not any('pointer' in name for name in load_image_tokenizer(tmp_path / 'whole').state_dict())


def test_it_starts_from_another_tokenizer(folder, tmp_path):
    first = train_image_tokenizer(folder, tmp_path / 'first', config=CONFIG, steps=4, batch=8, settings=SETTINGS)
    assert first.off is None
    begun = ImageTokenizerTrainer(FrameSet.load(folder), tmp_path / 'b', CONFIG, SETTINGS, init=tmp_path / 'first')
    then = load_image_tokenizer(tmp_path / 'first').state_dict()
    assert all(torch.equal(value, then[name]) for name, value in begun.model.state_dict().items())
    other = replace(CONFIG, z_channels=7)
    with pytest.raises(ValueError, match='a tokenizer of another shape'):
        ImageTokenizerTrainer(FrameSet.load(folder), tmp_path / 'c', other, SETTINGS, init=tmp_path / 'first')
