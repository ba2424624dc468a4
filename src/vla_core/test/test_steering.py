import numpy as np
import pytest

from vla_core.observe.steering import Steering
from vla_model.types import Trace


def steering(*points):
    return Steering(Trace('front', np.array(points, float), 200, 100))


def test_the_passed_part_is_cut_off_until_the_trace_is_done():
    line = steering((10, 50), (110, 50), (110, 90))
    assert line.left(np.array([60.0, 52.0])).points.tolist() == [
        pytest.approx([60, 50], abs=1), [110, 50], [110, 90]
    ]  # fmt: skip
    line.left(np.array([108.0, 52.0]))
    assert len(line.left(np.array([109.0, 70.0])).points) == 2  # round the corner
    assert not line.done
    assert line.left(np.array([110.0, 88.0])) is None
    assert line.done


def test_a_tool_beside_the_line_or_unknown_does_not_advance():
    line = steering((10, 50), (110, 50))
    for tool in (None, np.array([60.0, 95.0]), np.array([np.nan, 50.0])):
        assert line.left(tool).points.tolist() == [[10, 50], [110, 50]]


def test_the_tool_never_goes_back_and_does_not_jump_to_a_later_crossing():
    line = steering((10, 50), (190, 50), (190, 90), (20, 90), (20, 10))
    line.left(np.array([40.0, 50.0]))
    assert line.left(np.array([12.0, 50.0])).points[0] == pytest.approx([40, 50], abs=1)
    assert line.left(np.array([20.0, 50.0])).points[0] == pytest.approx([40, 50], abs=1)
