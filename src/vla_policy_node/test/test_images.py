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
        ({'encoding': 'yuv422'}, "encoding 'yuv422'.*rgb8"),
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
