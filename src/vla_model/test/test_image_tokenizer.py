import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from vla_model.checkpoints.nano import init_weights
from vla_model.config import ImageTokenizerConfig
from vla_model.image_tokenizer import ImageTokenizer, Quantizer, preprocess, to_image

torch.set_num_threads(1)


@given(st.integers(1, 10), st.data())
def test_codes_are_the_signs_of_their_channels(bits, data):
    quantizer = Quantizer(bits)
    codes = torch.tensor([data.draw(st.lists(st.integers(0, 2**bits - 1), min_size=6, max_size=6))])
    z = quantizer.embedding[codes].transpose(1, 2).unflatten(2, (2, 3))  # (1, bits, 2, 3)
    assert torch.equal(quantizer(z * 0.01), codes)
    for code, entry in zip(codes[0].tolist(), quantizer.embedding[codes[0]], strict=True):
        assert format(code, f'0{bits}b') == ''.join('1' if x > 0 else '0' for x in entry)
    assert torch.equal(quantizer(torch.zeros(1, bits, 2, 3)), torch.zeros(1, 6, dtype=torch.int64)), 'zero is no one'


@given(st.integers(32, 90), st.integers(32, 90), st.integers(0, 255))
def test_an_image_becomes_square_with_black_bars(height, width, grey):
    out = preprocess(np.full((height, width, 3), grey, np.uint8), 32)
    assert out.shape == (3, 32, 32) and out.dtype == torch.float32
    assert torch.allclose(out[:, 16, 16], torch.tensor(grey / 127.5 - 1), atol=0.02)
    side = max(height, width)
    if abs(height - width) > side / 2:
        assert torch.allclose(out[:, 0, 0], torch.tensor(-1.0), atol=0.05)


@given(st.integers(32, 300), st.integers(32, 300), st.integers(32, 128))
def test_images_are_resized_as_the_released_models_were_trained(height, width, side):
    image = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    square = max(height, width)
    x = torch.zeros(3, square, square)
    top, left = (square - height) // 2, (square - width) // 2
    x[:, top : top + height, left : left + width] = torch.tensor(image).permute(2, 0, 1) / 255
    if square != side:
        x = F.interpolate(x[None], (side, side), mode='bicubic', align_corners=False, antialias=True)[0]
    assert torch.allclose(preprocess(image, side), (x - 0.5) / 0.5, atol=3e-6)


def test_the_odd_pixel_goes_to_the_bottom_and_to_the_right():
    wide = preprocess(np.full((3, 4, 3), 255, np.uint8), 4)[0]
    assert wide.tolist() == [[1.0] * 4] * 3 + [[-1.0] * 4]
    tall = preprocess(np.full((4, 3, 3), 255, np.uint8), 4)[0]
    assert tall.tolist() == [[1.0, 1.0, 1.0, -1.0]] * 4


def test_pixels_and_images_round_trip():
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    difference = np.abs(to_image(preprocess(image, 32)).astype(int) - image)
    assert difference.max() <= 1
    assert to_image(torch.tensor([-5.0, 5.0, 0.0])[:, None, None]).tolist() == [[[0, 255, 127]]]


@pytest.mark.parametrize('width', [8, 16])
def test_any_width_encodes_to_and_decodes_from_the_same_grid(width):
    tokenizer = ImageTokenizer(ImageTokenizerConfig(32, width, 4, 6, (1, 2, 2), (1, 0, 1), (1, 2, 2), (0, 1, 1)))
    init_weights(tokenizer, 0)
    with torch.inference_mode():
        codes = tokenizer.encode(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
        assert codes.shape == (2, 64) and codes.min() >= 0 and codes.max() < 64
        assert tokenizer.decode(codes).shape == (2, 3, 32, 32)
