import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_model.tokens.bins import Ranges, dequantize, quantize

counts = st.integers(2, 4096)
numbers = st.floats(-10, 10)


@given(numbers, counts)
def test_round_trip_is_within_half_a_bin(value, count):
    back = float(dequantize(quantize(np.float64(value), count), count))
    assert abs(back - np.clip(value, -1, 1)) <= 1 / (count - 1) + 1e-6


@given(st.data(), counts)
def test_every_bin_comes_back(data, count):
    index = data.draw(st.integers(0, count - 1))
    assert quantize(dequantize(np.int64(index), count), count) == index


def test_end_points_are_exact_and_zero_is_not_representable():
    assert quantize(np.array([-1.0, 0.0, 1.0]), 2048).tolist() == [0, 1024, 2047]
    assert dequantize(np.array([0, 2047]), 2048).tolist() == [-1, 1]
    assert dequantize(np.array(1024), 2048) == pytest.approx(1 / 2047)


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_refuses_what_is_not_finite(bad):
    with pytest.raises(ValueError, match='not finite'):
        quantize(np.array([0.0, bad]), 2048)


@given(st.lists(st.tuples(numbers, st.floats(1e-3, 10), st.floats(0, 1)), min_size=1, max_size=8))
def test_ranges_round_trip_within_half_a_bin_of_robot_units(rows):
    low, width, share = np.array(rows).T
    ranges = Ranges(low, low + width)
    values = low + share * width
    back = ranges.denormalize(dequantize(quantize(ranges.normalize(values), 2048), 2048))
    assert (np.abs(back - values) <= width / 2047 / 2 + 1e-6).all()


@pytest.mark.parametrize(('low', 'high'), [([0], [0]), ([0, 0], [1]), ([0], [np.inf])])
def test_ranges_refuse_what_has_no_inverse(low, high):
    with pytest.raises(ValueError, match='two different finite ends'):
        Ranges(low, high)
