"""One bag offline and through the policy node over DDS: the same chunks, bit for bit."""

import numpy as np
import pytest

from vla_bringup.bags.synthetic import write_bag
from vla_bringup.console import make_console
from vla_bringup.replay.replay import Options, replay


def chunks(bag, mode, out, **settings):
    options = Options(bag=bag, mode=mode, out=out, instruction='press the red button', threads=1, **settings)
    return replay(options, 'random-nano', make_console())[1]


@pytest.mark.parametrize('compressed', [False, True])
def test_live_and_offline_give_the_same_chunks_bit_for_bit(tmp_path, compressed):
    bag = tmp_path / 'bag'

    def uneven(topic, k, message):
        """Cameras that lose frames, one at a time and both, and joints that come late or as nonsense."""
        if topic == '/joint_states':
            if 40 <= k < 60:
                return None  # stale for 0.1 s
            if k == 85:
                message.position[1] = np.nan
        elif k % 7 == 3:
            return None
        return message

    write_bag(bag, 1.5, compressed=compressed, side=64, change=uneven)
    offline = chunks(bag, 'offline', tmp_path / 'offline', rate=20.0)
    live = chunks(bag, 'live', tmp_path / 'live', rate=20.0)
    assert len(offline.cycles) > 10
    assert [c.t_ref for c in live.cycles] == [c.t_ref for c in offline.cycles]
    assert live.model_id == offline.model_id
    for a, b in zip(live.cycles, offline.cycles, strict=True):
        assert (a.at, a.instruction, a.chunk.dt, a.chunk.frozen) == (b.at, b.instruction, b.chunk.dt, b.chunk.frozen)
        for name in ('positions', 'gripper', 'confidence'):
            mine, theirs = getattr(a.chunk, name), getattr(b.chunk, name)
            assert np.array_equal(mine, np.asarray(theirs, mine.dtype)), (a.t_ref, name)
            assert mine.size
    assert live.session.report.as_dict() == offline.session.report.as_dict()
    assert len({c.chunk.positions.tobytes() for c in live.cycles}) > 5  # the model did look


@pytest.mark.slow
@pytest.mark.parametrize('back', [0.05, 3.0])
def test_live_and_offline_agree_about_a_computer_whose_clock_is_set_back(tmp_path, back):
    bag, step = tmp_path / 'bag', 100_750_000_000

    def clock(ns):
        return ns if ns < step else ns - round(back * 1e9)

    def stepped(topic, k, message):
        stamp = message.header.stamp
        ns = clock(stamp.sec * 1_000_000_000 + stamp.nanosec)
        stamp.sec, stamp.nanosec = ns // 1_000_000_000, ns % 1_000_000_000
        return message

    write_bag(bag, 1.5, compressed=False, side=64, change=stepped, received=clock)
    offline = chunks(bag, 'offline', tmp_path / 'offline', rate=20.0)
    live = chunks(bag, 'live', tmp_path / 'live', rate=20.0)
    assert sum(c.shift > 0 for c in offline.cycles) > 5
    assert [(c.t_ref, c.at, c.shift) for c in live.cycles] == [(c.t_ref, c.at, c.shift) for c in offline.cycles]
    for a, b in zip(live.cycles, offline.cycles, strict=True):
        assert np.array_equal(a.chunk.positions, b.chunk.positions)
