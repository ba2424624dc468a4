"""Image and joint-state messages to arrays; the messages here are plain objects, as a bag reader gives them."""

import array
import io
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vla_policy_node.ros.images import decode_image
from vla_policy_node.ros.joints import decode_gripper, decode_joints

SIZES = {'rgb8': 3, 'bgr8': 3, 'rgba8': 4, 'bgra8': 4, 'mono8': 1}


def image(encoding='rgb8', width=4, height=3, padding=0):
    """A message and the RGB picture in it."""
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (height, width, 3), np.uint8)
    if encoding == 'mono8':
        picture[...] = picture[..., :1]
    channels = {'b': picture[..., ::-1], 'r': picture, 'm': picture[..., :1]}[encoding[0]]
    if encoding.endswith('a8'):
        channels = np.concatenate([channels, np.full((height, width, 1), 7, np.uint8)], -1)
    rows = channels.reshape(height, -1)
    rows = np.concatenate([rows, np.zeros((height, padding), np.uint8)], 1)
    data = array.array('B')
    data.frombytes(np.ascontiguousarray(rows).tobytes())
    msg = SimpleNamespace(encoding=encoding, width=width, height=height, step=rows.shape[1], data=data)
    return msg, picture


@given(st.sampled_from(sorted(SIZES)), st.integers(1, 9), st.integers(1, 9), st.integers(0, 5))
def test_every_encoding_and_padding_gives_the_picture(encoding, width, height, padding):
    msg, picture = image(encoding, width, height, padding)
    decoded = decode_image(msg, 'front')
    assert decoded.shape == (height, width, 3)
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, picture)


@pytest.mark.parametrize('encoding', sorted(SIZES))
def test_nothing_is_copied(encoding):
    msg, _ = image(encoding)
    assert np.shares_memory(decode_image(msg, 'front'), np.frombuffer(msg.data, np.uint8))


def test_rgb8_is_contiguous_and_bytes_and_arrays_are_read_alike():
    msg, picture = image('rgb8')
    assert decode_image(msg, 'front').flags.c_contiguous
    msg.data = np.frombuffer(bytes(msg.data), np.uint8)
    np.testing.assert_array_equal(decode_image(msg, 'front'), picture)


@pytest.mark.parametrize(
    ('changes', 'says'),
    [
        ({'encoding': '32FC1'}, "encoding '32FC1'.*rgb8"),
        ({'encoding': '8UC3'}, "encoding '8UC3'.*order of the colours.*--encoding rgb8 or bgr8"),
        ({'encoding': 'nv12', 'step': 4}, 'and nv12 needs even sizes'),
        ({'width': 0}, 'is empty'),
        ({'step': 11}, 'step 11.*at least 12'),
        ({'data': b'123'}, '3 bytes.*36'),
        ({'data': b''}, '0 bytes.*36'),
    ],
)
def test_a_bad_image_is_named(changes, says):
    msg, _ = image()
    msg.__dict__.update(changes)
    with pytest.raises(ValueError, match=f'image on front/image_raw.*{says}'):
        decode_image(msg, 'front/image_raw')


def yuv(picture):
    """(H, W, 3) uint8: Y, U, V of BT.601, limited range."""
    matrix = np.array([[65.481, 128.553, 24.966], [-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]]) / 255
    return np.rint(picture @ matrix.T + [16, 128, 128]).clip(0, 255).astype(np.uint8)


def packed(encoding, y, u, v, padding):
    """The bytes of an image and its step, from planes of full size."""
    pad = lambda rows: np.pad(rows, ((0, 0), (0, padding)))  # noqa: E731
    if not encoding.startswith('nv'):
        pairs = [y[:, ::2], u[:, ::2], y[:, 1::2], v[:, ::2]]
        pairs = [pairs[i] for i in ((0, 1, 2, 3) if encoding in ('yuyv', 'yuv422_yuy2') else (1, 0, 3, 2))]
        rows = pad(np.stack(pairs, -1).reshape(len(y), -1))
        return rows.tobytes(), rows.shape[1]
    half = (slice(None), slice(None)) if encoding == 'nv24' else (slice(None, None, 2), slice(None, None, 2))
    chroma = [v[half], u[half]] if encoding == 'nv21' else [u[half], v[half]]
    step = y.shape[1] + padding
    colour = np.stack(chroma, -1).reshape(len(chroma[0]), -1)
    width = 2 * step if encoding == 'nv24' else step
    colour = np.pad(colour, ((0, 0), (0, width - colour.shape[1])))
    return pad(y).tobytes() + colour.tobytes(), step


@pytest.mark.parametrize('encoding', ['yuyv', 'yuv422_yuy2', 'uyvy', 'yuv422', 'nv12', 'nv21', 'nv24'])
@pytest.mark.parametrize(('width', 'padding'), [(64, 0), (38, 6)])
def test_yuv_gives_the_colours_of_bt601(encoding, width, padding):
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (6, (width + 7) // 8, 3), np.uint8)
    blocks[0, :2] = [[255, 255, 255], [0, 0, 0]]
    picture = blocks.repeat(8, 0).repeat(8, 1)[:, :width]
    data, step = packed(encoding, *np.moveaxis(yuv(picture), -1, 0), padding)
    msg = SimpleNamespace(encoding=encoding, width=width, height=48, step=step, data=data, is_bigendian=0)
    decoded = decode_image(msg, 'front')
    assert decoded.shape == picture.shape and decoded.dtype == np.uint8
    inside = np.zeros(picture.shape[:2], bool)  # colours are interpolated where blocks meet
    inside[2:46, 2 : width - 2] = True
    inside &= (np.arange(48) % 8 > 1)[:, None] & (np.arange(48) % 8 < 6)[:, None]
    inside &= (np.arange(width) % 8 > 1) & (np.arange(width) % 8 < 6)
    assert np.abs(decoded.astype(int) - picture)[inside].max() <= 3


@pytest.mark.parametrize('order', ['rggb', 'bggr', 'gbrg', 'grbg'])
@pytest.mark.parametrize(('bits', 'big'), [('8', 0), ('16', 0), ('16', 1)])
def test_bayer_patterns_give_their_colours(order, bits, big):
    colour = dict(zip('rgb', (200, 90, 30), strict=True))
    cell = np.array([colour[c] for c in order]).reshape(2, 2)
    raw = np.tile(cell, (8, 10)).astype(np.uint8)
    if bits == '16':
        raw = (raw.astype(np.uint16) * 257).astype('>u2' if big else '<u2')
    step = raw.shape[1] * raw.itemsize
    msg = SimpleNamespace(
        encoding=f'bayer_{order}{bits}', width=20, height=16, step=step, data=raw.tobytes(), is_bigendian=big
    )
    np.testing.assert_allclose(decode_image(msg, 'front')[4:-4, 4:-4].mean((0, 1)), [200, 90, 30], atol=1.0)


@pytest.mark.parametrize('encoding', ['rgb16', 'bgr16', 'rgba16', 'bgra16', 'mono16'])
@pytest.mark.parametrize('big', [0, 1])
def test_of_two_bytes_the_higher_one_counts(encoding, big):
    msg, picture = image(encoding.replace('16', '8'), padding=1)
    wide = np.frombuffer(msg.data, np.uint8).astype(np.uint16) * 256 + 77
    msg.data, msg.step = wide.astype('>u2' if big else '<u2').tobytes(), 2 * msg.step
    msg.encoding, msg.is_bigendian = encoding, big
    np.testing.assert_array_equal(decode_image(msg, 'front'), picture)


@pytest.mark.parametrize('order', ['rgb8', 'bgr8'])
@pytest.mark.parametrize('encoding', ['8UC3', '8UC4', '8UC1'])
def test_colours_whose_order_is_not_given_are_read_in_the_configured_one(encoding, order):
    name = {'8UC3': order, '8UC4': order.replace('8', 'a8'), '8UC1': 'mono8'}[encoding]
    msg, picture = image(name)
    msg.encoding = encoding
    np.testing.assert_array_equal(decode_image(msg, 'front', order=order), picture)


def test_another_size_than_expected_is_named():
    msg, _ = image(width=4, height=3)
    decode_image(msg, 't', width=4, height=3)
    with pytest.raises(ValueError, match=r'4 x 3, expected 640 x any.*image_width'):
        decode_image(msg, 't', width=640)


ARM = ('j1', 'j2')
FINGERS = ('f1', 'f2')


def joints(**changes):
    values = {
        'name': ['f1', 'j2', 'j1', 'f2'],
        'position': [0.01, 2.0, 1.0, 0.03],
        'velocity': [0.0, 0.2, 0.1, 0.0],
        'effort': [],
    }
    return SimpleNamespace(**(values | changes))


def test_joints_are_found_by_name():
    positions, velocities = decode_joints(joints(), ARM, 'joint_states')
    assert positions.tolist() == [1.0, 2.0]
    assert velocities.tolist() == [0.1, 0.2]
    assert decode_gripper(joints(), FINGERS, 'joint_states') == pytest.approx(0.04)


def test_the_gripper_needs_no_velocities():
    assert decode_gripper(joints(velocity=[]), FINGERS, 'joint_states') == pytest.approx(0.04)


@pytest.mark.parametrize(
    ('changes', 'says'),
    [
        ({'name': ['f1', 'j2', 'panda_joint1', 'f2']}, r"lacks \['j1'\].*robot profile"),
        ({'name': ['f1', 'j2', 'j1', 'j2']}, r"\['j2'\] more than once"),
        ({'position': [0.0, 1.0]}, '4 names and 2 position'),
        ({'velocity': [0.0, 1.0]}, '4 names and 2 velocity'),
        ({'velocity': []}, 'no velocities'),
        ({'position': [0.0, float('nan'), 1.0, 0.0]}, r"position that is not finite for \['j2'\]"),
        ({'velocity': [0.0, 0.0, float('inf'), 0.0]}, r"velocity that is not finite for \['j1'\]"),
    ],
)
def test_a_bad_joint_state_is_named(changes, says):
    with pytest.raises(ValueError, match=f'joint state on joint_states.*{says}'):
        decode_joints(joints(**changes), ARM, 'joint_states')


def test_a_finger_that_is_not_finite_does_not_spoil_the_arm():
    msg = joints(position=[float('nan'), 2.0, 1.0, 0.0])
    decode_joints(msg, ARM, 'joint_states')
    with pytest.raises(ValueError, match='f1'):
        decode_gripper(msg, FINGERS, 'joint_states')


@pytest.mark.parametrize('kind', ['JPEG', 'PNG'])
@pytest.mark.parametrize('mode', ['RGB', 'L', 'RGBA'])
def test_compressed_images(kind, mode):
    if (kind, mode) == ('JPEG', 'RGBA'):
        pytest.skip('JPEG has no alpha')
    picture = np.add.outer(np.arange(12), np.arange(16))[..., None] * np.array([1, 2, 3])
    data = io.BytesIO()
    whole = Image.fromarray(picture.astype(np.uint8)).convert(mode)
    whole.save(data, kind, **({'quality': 100, 'subsampling': 0} if kind == 'JPEG' else {}))
    msg = SimpleNamespace(format=kind.lower(), data=array.array('B', data.getvalue()))
    decoded = decode_image(msg, 'front', width=16, height=12)
    assert decoded.shape == (12, 16, 3)
    assert decoded.dtype == np.uint8
    np.testing.assert_allclose(decoded.astype(int), np.asarray(whole.convert('RGB')).astype(int), atol=3)
    with pytest.raises(ValueError, match='16 x 12, expected 8 x any'):
        decode_image(msg, 'front', width=8)
    for bad in (msg.data[: len(msg.data) // 2], array.array('B', b'nonsense'), array.array('B')):
        with pytest.raises(ValueError, match=r'compressed image on front .* cannot be decoded'):
            decode_image(SimpleNamespace(format='jpeg', data=bad), 'front')
