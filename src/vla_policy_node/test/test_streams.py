"""Reading stamped streams together: what is usable, what is not, and why."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_policy_node.observe.streams import NS, Aligned, Missing, Reason, Streams, StreamSpec
from vla_policy_node.stats import Rate, Window

MS = 1_000_000
T0 = 1_000 * NS


def make(camera_age=0.3, joint_age=0.1):
    return Streams(
        [
            StreamSpec('front', 'front/image_raw', camera_age, leads=True),
            StreamSpec('wrist', 'wrist/image_raw', camera_age, leads=True),
            StreamSpec('joints', 'joint_states', joint_age),
        ]
    )


def put_all(streams, stamp, value=None):
    for name in streams.specs:
        streams.put(name, stamp, value)


def test_nothing_received_names_the_stream_and_its_topic():
    streams = make()
    found = streams.align(T0)
    assert found.reason is Reason.MISSING
    assert found.stream == 'front'
    assert 'front/image_raw' in found.message
    streams.put('front', T0, 0)
    streams.put('joints', T0, 0)
    assert streams.align(T0).stream == 'wrist'
    assert streams.ages(T0) == {'front': 0.0, 'wrist': -1.0, 'joints': 0.0}


def test_cameras_with_common_stamps_are_read_as_the_set_they_are():
    streams = make()
    put_all(streams, T0, 'old')
    streams.put('front', T0 + 100 * MS, 'new')  # the wrist image of this time is still on its way
    streams.put('joints', T0 + 100 * MS, 'new')
    assert set(streams.align(T0 + 101 * MS).values.values()) == {'old'}
    streams.put('wrist', T0 + 100 * MS, 'new')
    found = streams.align(T0 + 102 * MS)
    assert set(found.values.values()) == {'new'}
    assert found.t_ref == T0 + 100 * MS
    assert found.skew == 0.0


def test_joints_are_read_as_of_the_image_and_the_skew_is_told():
    streams = make()
    for i in range(20):
        streams.put('joints', T0 + i * 10 * MS, i)
    streams.put('front', T0 + 55 * MS, 'f')
    streams.put('wrist', T0 + 50 * MS, 'w')
    found = streams.align(T0 + 200 * MS)
    assert found.t_ref == T0 + 55 * MS
    assert found.values == {'front': 'f', 'wrist': 'w', 'joints': 5}
    assert found.skew == pytest.approx(0.005)


@pytest.mark.parametrize('phase', [0, 5, 20, 95])
def test_free_running_cameras_are_read_in_their_closest_pairs(phase):
    """Both at 10 Hz, the wrist camera `phase` ms behind; asked after every arrival."""
    streams, seen = make(), {}
    arrivals = sorted([(i * 100, 'front') for i in range(10)] + [(i * 100 + phase, 'wrist') for i in range(10)])
    for ms, name in arrivals:
        streams.put('joints', T0 + ms * MS, None)
        streams.put(name, T0 + ms * MS, None)
        found = streams.align(T0 + ms * MS)
        if isinstance(found, Aligned):
            seen[found.t_ref] = abs(found.stamps['front'] - found.stamps['wrist']) // MS
    assert set(list(seen.values())[1:]) == {min(phase, 100 - phase)}
    assert len(seen) >= 9


def test_a_value_later_than_the_image_is_never_used():
    streams = make()
    streams.put('front', T0, 'f')
    streams.put('wrist', T0, 'w')
    streams.put('joints', T0 + 50 * MS, 'later')
    found = streams.align(T0 + 60 * MS)
    assert isinstance(found, Missing)
    assert (found.reason, found.stream) == (Reason.STALE, 'joints')


def test_old_values_are_stale():
    streams = make()
    put_all(streams, T0)
    assert isinstance(streams.align(T0 + 99 * MS), Aligned)
    late = streams.align(T0 + 101 * MS)
    assert (late.reason, late.stream) == (Reason.STALE, 'joints')
    assert '0.101 s' in late.message
    streams.put('joints', T0 + 301 * MS, None)
    assert streams.align(T0 + 301 * MS).stream == 'front'


def test_a_stamp_of_zero_names_the_driver():
    streams = make()
    put_all(streams, 0)
    assert 'header.stamp is zero' in streams.align(T0).message


def test_stamps_ahead_of_the_clock_are_not_used_until_their_time():
    streams = make()
    put_all(streams, T0 + NS, 'ahead')
    found = streams.align(T0)
    assert found.reason is Reason.FUTURE
    assert '1.000 s ahead' in found.message
    assert isinstance(streams.align(T0 + NS), Aligned)


def test_one_stamp_ahead_does_not_hide_the_good_values():
    streams = make()
    put_all(streams, T0, 'good')
    streams.put('front', T0 + NS // 2, 'ahead')
    found = streams.align(T0 + 10 * MS)
    assert found.values['front'] == 'good'


def test_messages_that_overtook_one_another_are_sorted():
    streams = make()
    streams.put('joints', T0 + 20 * MS, 'second')
    streams.put('joints', T0, 'first')
    streams.put('front', T0 + 10 * MS, None)
    streams.put('wrist', T0 + 10 * MS, None)
    assert streams.align(T0 + 30 * MS).values['joints'] == 'first'


def test_a_sender_whose_clock_went_back_starts_anew():
    streams = make()
    put_all(streams, T0, 'before')
    put_all(streams, T0 - 100 * NS, 'after')
    found = streams.align(T0 - 100 * NS)
    assert set(found.values.values()) == {'after'}


def test_a_clock_that_went_back_clears():
    streams = make()
    put_all(streams, T0)
    assert isinstance(streams.align(T0), Aligned)
    assert streams.align(T0 - NS).reason is Reason.MISSING
    put_all(streams, T0 - NS)
    assert isinstance(streams.align(T0 - NS), Aligned)


def test_sets_passed_over_are_counted():
    streams = make()
    put_all(streams, T0)
    first = streams.align(T0).index
    for i in range(1, 4):
        put_all(streams, T0 + i * 10 * MS)
    assert streams.align(T0 + 30 * MS).index - first == 3


def test_wrong_specs_are_refused():
    camera = StreamSpec('a', 't', 1.0, leads=True)
    with pytest.raises(ValueError, match='distinct'):
        Streams([camera, camera])
    with pytest.raises(ValueError, match='lead'):
        Streams([StreamSpec('a', 't', 1.0)])


names = st.sampled_from(['front', 'wrist', 'joints'])
events = st.lists(st.tuples(names, st.integers(0, 900)), max_size=60)  # stream, stamp in ms after T0


@given(events, st.integers(0, 1000))
def test_whatever_comes_only_fresh_values_as_of_t_ref_are_used(arrivals, now_ms):
    streams = make()
    for name, ms in arrivals:
        streams.put(name, T0 + ms * MS, ms)
    now = T0 + now_ms * MS
    found = streams.align(now)
    if isinstance(found, Missing):
        assert found.stream in streams.specs
        assert found.message
        return
    received = {n: [T0 + ms * MS for m, ms in arrivals if m == n] for n in streams.specs}
    assert found.t_ref in received['front'] + received['wrist']
    assert found.t_ref <= now + 100 * MS
    for name, stamp in found.stamps.items():
        spec = streams.specs[name]
        assert stamp == max(s for s in received[name] if s <= found.t_ref)
        assert found.t_ref - stamp <= spec.max_age * NS
        assert found.values[name] == (stamp - T0) // MS
    assert found.skew == (max(found.stamps.values()) - min(found.stamps.values())) / NS


@given(st.permutations([(n, i) for n in ('front', 'wrist', 'joints') for i in range(6)]))
def test_the_order_of_arrival_does_not_matter(arrivals):
    streams = make()
    for name, i in arrivals:
        streams.put(name, T0 + i * 50 * MS, (name, i))
    found = streams.align(T0 + 260 * MS)
    assert found.t_ref == T0 + 250 * MS
    assert found.values == {n: (n, 5) for n in ('front', 'wrist', 'joints')}


@given(st.lists(st.integers(1, 100), min_size=1, max_size=60), st.integers(1, 5))
def test_t_ref_never_goes_back_and_memory_is_bounded(steps, every):
    streams = make()
    now, last = T0, 0
    for i, step in enumerate(steps):
        now += step * MS
        put_all(streams, now)
        if i % every == 0:
            found = streams.align(now)
            assert found.t_ref >= last
            last = found.t_ref
        longest = max(len(r.stamps) for r in streams._rings.values())
        assert longest <= 900  # the oldest kept value is at most some tenths of a second old


def test_percentiles_are_numpys_over_the_newest_values():
    window = Window(3)
    assert math.isnan(window.percentiles().p50)
    for value in (100.0, 1.0, 2.0, 3.0):
        window.add(value)
    assert (len(window), window.percentiles().p50) == (3, 2.0)
    assert window.percentiles().p99 == pytest.approx(2.98)
    assert window.percentiles().largest == 3.0


def test_rate_counts_the_newest_seconds_only():
    rate = Rate(span=5.0)
    assert rate.value(0.0) == 0.0
    for i in range(100):
        rate.mark(i * 0.1)
    assert rate.value(9.9) == pytest.approx(10.0)
    assert rate.value(100.0) == 0.0
