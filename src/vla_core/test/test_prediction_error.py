"""The prediction error of an image: the number, and the camera image that a prediction is compared with."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from vla_core.observe.prediction_error import PredictionMatcher, prediction_error, square
from vla_model.types import PredictedImage

SIDE = 64


def scene(x=None, spot=None, size=(48, 64)):
    """A brown table, a white arm 12 pixels wide at column x, a blue spot (column, row)."""
    image = np.full((*size, 3), (150, 110, 70), np.uint8)
    if x is not None:
        image[:30, x : x + 12] = 235
    if spot is not None:
        image[spot[1] : spot[1] + 8, spot[0] : spot[0] + 8] = (20, 40, 200)
    return image


def predicted(image, noise=6.0, seed=0):
    """As a model sees it, with what its tokenizer gets wrong."""
    seen = square(image, SIDE).astype(float) + np.random.default_rng(seed).normal(0, noise, (SIDE, SIDE, 3))
    return np.clip(seen, 0, 255).astype(np.uint8)


BEFORE, AFTER = scene(10, (48, 30)), scene(34, (48, 30))


def test_a_change_that_was_predicted_is_no_error():
    assert prediction_error(BEFORE, predicted(AFTER), AFTER) < 0.05
    assert prediction_error(BEFORE, predicted(BEFORE), BEFORE) == 0.0  # nothing was to move and nothing did


def test_an_arm_that_does_not_move_as_predicted_is_an_error():
    assert prediction_error(BEFORE, predicted(AFTER), BEFORE) > 0.7  # it was held
    assert prediction_error(BEFORE, predicted(BEFORE), AFTER) > 0.7  # it moved though it was to rest
    assert prediction_error(BEFORE, predicted(AFTER), scene(22, (48, 30))) > 0.3  # it got half the way


def test_an_object_that_is_knocked_over_is_an_error_beside_an_arm_that_moves():
    knocked = scene(34, (4, 38))
    assert (
        prediction_error(BEFORE, predicted(AFTER), knocked)
        > 0.1
        > 3 * prediction_error(BEFORE, predicted(AFTER), AFTER)
    )


def test_the_picture_may_be_of_any_size():
    large = np.kron(AFTER, np.ones((5, 5, 1), np.uint8))
    assert prediction_error(np.kron(BEFORE, np.ones((5, 5, 1), np.uint8)), predicted(AFTER), large) < 0.05


IMAGES = arrays.arrays(np.uint8, (16, 16, 3))


@settings(max_examples=30)
@given(IMAGES, IMAGES, IMAGES)
def test_it_is_a_share(before, thought, came):
    assert 0 <= prediction_error(before, thought, came) < 1
    assert prediction_error(before, came, came) == 0


def test_an_image_that_is_not_square_is_refused():
    with pytest.raises(ValueError, match=r'\(4, 8, 3\)'):
        prediction_error(BEFORE, np.zeros((4, 8, 3), np.uint8), AFTER)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40))
@settings(max_examples=40)
def test_bars_lie_as_the_model_has_them(width, height, side):
    from vla_model.image_tokenizer import preprocess, to_image

    rng = np.random.default_rng(width * 1600 + height * 40 + side)
    image = np.full((height, width, 3), rng.integers(100, 255, 3), np.uint8)
    edge = max(width, height)
    np.testing.assert_allclose(square(image, edge), to_image(preprocess(image, edge)), atol=1)


S = 1_000_000_000


def image(t_ref):
    return PredictedImage(t_ref, t_ref + S, np.full((4, 4, 3), 7, np.uint8), 1.0)


def pixels(value):
    return np.full((2, 2, 3), value, np.uint8)


def test_the_image_closest_to_the_time_counts_once_there_is_a_later_one():
    e = PredictionMatcher()
    e.begin(0, S, pixels(1))
    for stamp in (S // 2, S - 40_000_000):
        e.observed(stamp, pixels(stamp // 10_000_000))
    e.predicted('me', image(0))
    assert not e.ready
    e.observed(S + 60_000_000, pixels(250))
    assert e.ready
    pair = e.take()
    assert (pair.owner, pair.due, pair.before[0, 0, 0], pair.predicted[0, 0, 0]) == ('me', S, 1, 7)
    assert pair.observed[0, 0, 0] == 96
    assert not e.ready and e.take() is None


def test_an_image_may_be_complete_after_its_time():
    e = PredictionMatcher()
    e.begin(0, S, pixels(1))
    e.observed(S, pixels(100))
    e.observed(3 * S, pixels(250))
    assert not e.ready
    e.predicted('me', image(0))
    assert e.take().observed[0, 0, 0] == 100


def test_without_an_image_of_that_time_there_is_no_pair():
    e = PredictionMatcher()
    e.begin(0, S, pixels(1))
    e.predicted('me', image(0))
    e.observed(S + 110_000_000, pixels(250))  # the camera was away
    assert e.ready and e.take() is None and not e.ready


def test_a_prediction_that_was_dropped_is_not_compared():
    e = PredictionMatcher()
    e.begin(0, S, pixels(1))  # dropped before it was done
    e.begin(S // 2, 3 * S // 2, pixels(2))
    e.observed(3 * S, pixels(0))
    e.predicted('me', image(0))
    assert not e.ready
    e.begin(4 * S, 5 * S, pixels(3))
    e.predicted('me', image(4 * S))
    e.observed(5 * S, pixels(9))
    assert e.take().before[0, 0, 0] == 3
    e.begin(6 * S, 7 * S, pixels(3))
    e.predicted('me', image(6 * S))
    e.clear()
    e.observed(7 * S, pixels(9))
    assert not e.ready
