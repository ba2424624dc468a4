"""Reading stamped streams together: what is usable, what is not, and why."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_core.observe.streams import NS, Aligned, Missing, Reason, Streams, StreamSpec
from vla_core.stats import Rate, Window

MS = 1_000_000
T0 = 1_000 * NS


class Put(Streams):
    """Messages arrive at their stamp where a test gives no other time."""

    def put(self, name, stamp, value, received=None):
        return super().put(name, stamp, value, stamp if received is None else received)


def make(camera_age=0.3, joint_age=0.1, **options):
    return Put(
        [
            StreamSpec('front', 'front/image_raw', camera_age, leads=True),
            StreamSpec('wrist', 'wrist/image_raw', camera_age, leads=True),
            StreamSpec('joints', 'joint_states', joint_age),
        ],
        **options,
    )


def put_all(streams, stamp, value=None, received=None):
    for name in streams.specs:
        streams.put(name, stamp, value, received)


def ahead_of_arrival(streams, name, stamp, received):
    """Put what cannot be; returns the sentence."""
    with pytest.raises(ValueError, match='ahead of the clock: synchronise the clocks') as raised:
        streams.put(name, stamp, 'ahead', received)
    return str(raised.value)


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


def test_a_set_has_the_images_of_a_time_before_where_a_model_needs_them():
    streams = make()
    for i in range(8):
        put_all(streams, T0 + i * 30 * MS, i)
    assert streams.align(T0 + 210 * MS).before == {}
    streams.remember(0.05)
    for i in range(8, 12):
        put_all(streams, T0 + i * 30 * MS, i)
        found = streams.align(T0 + i * 30 * MS)
        assert set(found.values.values()) == {i}
        assert found.before == ({} if i < 9 else {'front': i - 2, 'wrist': i - 2})


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


def settling(joint_age=0.1):
    return Put(
        [
            StreamSpec('front', 'front/image_raw', 0.3, leads=True),
            StreamSpec('joints', 'joint_states', joint_age, settles=0.05),
        ]
    )


def test_a_set_waits_for_the_joints_of_its_time():
    streams = settling()
    put_all(streams, T0, 'old')
    assert streams.align(T0).t_ref == T0 and streams.awaited is None
    streams.put('joints', T0 + 90 * MS, 'a moment before')
    streams.put('front', T0 + 100 * MS, 'new')
    assert streams.align(T0 + 100 * MS).t_ref == T0
    assert streams.awaited == T0 + 100 * MS
    streams.put('joints', T0 + 100 * MS, 'new')
    assert streams.align(T0 + 100 * MS).values == {'front': 'new', 'joints': 'new'}
    assert streams.awaited is None


def test_a_set_does_not_wait_for_joints_that_come_seldom():
    streams = settling(joint_age=0.3)
    put_all(streams, T0, 'old')
    streams.put('front', T0 + 60 * MS, 'new')
    assert streams.align(T0 + 109 * MS).t_ref == T0
    streams.put('joints', T0 + 40 * MS, 'before', T0 + 110 * MS)
    assert streams.align(T0 + 110 * MS).values == {'front': 'new', 'joints': 'before'}


def test_the_first_set_does_not_wait():
    streams = settling()
    streams.put('joints', T0, 'before')
    streams.put('front', T0 + 10 * MS, 'new')
    assert streams.align(T0 + 10 * MS).t_ref == T0 + 10 * MS


def test_joints_are_read_as_of_the_image_and_the_skew_is_reported():
    streams = make()
    for i in range(20):
        streams.put('joints', T0 + i * 10 * MS, i)
    streams.put('front', T0 + 55 * MS, 'f', T0 + 200 * MS)
    streams.put('wrist', T0 + 50 * MS, 'w', T0 + 200 * MS)
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
    put_all(streams, 0, received=T0)
    assert 'header.stamp is zero' in streams.align(T0).message


def test_stamps_ahead_of_their_arrival_are_not_used_while_such_come():
    """At 5 Hz the stamps come to be in the past before the next message: the verdict must not flicker."""
    streams = make(joint_age=0.3)
    put_all(streams, T0, 'good')
    for i in range(1, 4):
        now = T0 + i * 200 * MS
        streams.put('wrist', now, None)
        streams.put('joints', now, None)
        message = ahead_of_arrival(streams, 'front', now + 280 * MS, now)
        assert 'front on front/image_raw is stamped 0.280 s ahead' in message
        for later in range(0, 200, 20):
            found = streams.align(now + later * MS)
            assert (found.reason, found.stream, found.message) == (Reason.FUTURE, 'front', message)
        assert streams.ages(now)['front'] == -0.28
    put_all(streams, T0 + 800 * MS, 'right again')
    assert streams.align(T0 + 800 * MS).t_ref == T0 + 800 * MS


def test_a_clock_at_the_limit_of_what_may_be_ahead_does_not_make_the_verdict_flicker():
    streams = make()
    put_all(streams, T0, received=T0)
    ahead_of_arrival(streams, 'front', T0 + 111 * MS, T0 + 10 * MS)
    ahead_of_arrival(streams, 'front', T0 + 119 * MS, T0 + 20 * MS)
    assert streams.align(T0 + 20 * MS).reason is Reason.FUTURE
    streams.put('front', T0 + 50 * MS, None, T0 + 30 * MS)
    assert isinstance(streams.align(T0 + 30 * MS), Aligned)


def test_one_stamp_ahead_does_not_cost_the_good_values():
    streams = make()
    put_all(streams, T0, 'good')
    ahead_of_arrival(streams, 'front', T0 + NS // 2, T0)
    assert streams.align(T0 + 10 * MS).reason is Reason.FUTURE
    assert streams.put('front', T0 + 30 * MS, 'good') == ''
    put_all(streams, T0 + 30 * MS, 'good')
    assert streams.align(T0 + 30 * MS).t_ref == T0 + 30 * MS


def test_messages_of_simulated_time_may_arrive_before_their_clock():
    streams = make()
    put_all(streams, T0, 'early', received=T0 - 40 * MS)
    assert set(streams.align(T0 - 40 * MS).values.values()) == {'early'}
    streams.clear()
    put_all(streams, T0, 'before any clock', received=0)
    assert streams.align(T0).t_ref == T0


def test_a_simulated_clock_that_is_delivered_late_costs_no_value():
    streams = make(joint_age=0.3)
    streams.simulated = True
    put_all(streams, T0, 'known', received=T0)
    put_all(streams, T0 + 250 * MS, 'early', received=T0 + 50 * MS)
    assert set(streams.align(T0 + 50 * MS).values.values()) == {'known'}  # until the clock is there
    assert set(streams.align(T0 + 250 * MS).values.values()) == {'early'}
    ahead_of_arrival(streams, 'front', T0 + 3 * NS, T0 + 260 * MS)


def test_messages_that_overtook_one_another_are_sorted():
    streams = make()
    streams.put('joints', T0 + 20 * MS, 'second')
    assert streams.put('joints', T0, 'first', T0 + 20 * MS) == ''
    streams.put('front', T0 + 10 * MS, None, T0 + 20 * MS)
    streams.put('wrist', T0 + 10 * MS, None, T0 + 20 * MS)
    assert streams.align(T0 + 30 * MS).values['joints'] == 'first'


@pytest.mark.parametrize('back', [60, 250, 3_000, 10_000_000])
def test_a_sender_whose_clock_was_set_back_starts_anew_and_is_reported_once(back):
    """Joints at 100 Hz, their stamps set back by `back` ms at once: no value of before is read with one of after."""
    streams, notes, read = make(camera_age=5.0, joint_age=4.0), [], []
    for ms in range(0, 400, 10):
        now = T0 + ms * MS
        side = 'after' if ms >= 200 else 'before'
        notes += [streams.put('joints', now - back * MS if side == 'after' else now, side, now)]
        for camera in ('front', 'wrist'):
            streams.put(camera, now, None)
        found = streams.align(now)
        read += [found.values['joints'] if isinstance(found, Aligned) else found.reason]
    assert [n for n in notes if n] == [
        f'the clock of joints on joint_states was set back by {back / 1e3:.3f} s: '
        'synchronise the clocks before the arm is driven'
    ]
    stale = back > 4_000
    assert read == ['before'] * 20 + [Reason.STALE if stale else 'after'] * 20


@pytest.mark.parametrize('back', [50, 1_000, 900_000])
def test_a_clock_of_arrivals_that_was_set_back_clears_every_stream_and_is_reported_once(back):
    streams = make(clock='the recorder')
    put_all(streams, T0, 'before')
    assert isinstance(streams.align(T0), Aligned)
    then = T0 - back * MS
    assert streams.put('front', then, 'after') == (
        f'the clock of the recorder was set back by {back / 1e3:.3f} s: synchronise the clocks before the arm is driven'
    )
    assert streams.align(then).reason is Reason.MISSING
    assert [streams.put(name, then + MS, 'after') for name in streams.specs] == ['', '', '']
    assert set(streams.align(then + MS).values.values()) == {'after'}


def test_a_clock_that_went_back_clears():
    streams = make()
    put_all(streams, T0)
    assert isinstance(streams.align(T0), Aligned)
    assert streams.align(T0 - NS).reason is Reason.MISSING
    put_all(streams, T0 - NS)
    assert isinstance(streams.align(T0 - NS), Aligned)


def test_a_stream_that_nothing_comes_from_is_stale_although_its_stamps_are_fresh():
    steady = [50.0]
    streams = make(real_time=True, steady=lambda: steady[0])
    put_all(streams, T0 + 80 * MS, received=T0)  # within the tolerance
    steady[0] += 0.11
    found = streams.align(T0 + 20 * MS)  # meanwhile the machine's clock was set back a little
    assert (found.reason, found.stream) == (Reason.STALE, 'joints')
    assert 'no joints on joint_states came for 0.110 s (limit 0.1 s)' in found.message
    streams = make(steady=lambda: steady[0])
    put_all(streams, T0 + 80 * MS, received=T0)
    steady[0] += 100  # simulated time stands still as long as it likes
    assert isinstance(streams.align(T0), Aligned)
    assert streams.align(T0 + 110 * MS).reason is Reason.STALE


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
# stream, time to the next arrival, age at arrival (below zero: ahead) [ms]
events = st.lists(st.tuples(names, st.integers(0, 60), st.integers(-120, 200)), max_size=60)


@given(events, st.integers(0, 300))
def test_whatever_comes_only_fresh_values_as_of_t_ref_are_used(sent, after_ms):
    """The times are made up at random; what may be read is what came since the last step back of its stream."""
    streams, clock = make(), 0
    received, ahead = {n: [] for n in streams.specs}, dict.fromkeys(streams.specs, False)
    for name, passed, age in sent:
        clock += passed
        ms, before = clock - age, received[name]
        try:
            note = streams.put(name, T0 + ms * MS, ms, T0 + clock * MS)
        except ValueError:
            assert age < -50
            ahead[name] = True
            continue
        ahead[name] = False
        newest = max(before, default=T0 + ms * MS)
        assert bool(note) == (T0 + ms * MS < newest - 20 * MS)
        received[name] = [*([] if note else before), T0 + ms * MS]
    now = T0 + (clock + after_ms) * MS
    found = streams.align(now)
    if isinstance(found, Missing):
        assert found.stream in streams.specs
        assert found.message
        return
    assert not any(ahead.values())
    assert found.t_ref in received['front'] + received['wrist']
    assert found.t_ref <= now + 100 * MS
    for name, stamp in found.stamps.items():
        spec = streams.specs[name]
        assert stamp == max(s for s in received[name] if s <= found.t_ref)
        assert found.t_ref - stamp <= spec.max_age * NS
        assert found.values[name] == (stamp - T0) // MS
    assert found.skew == (max(found.stamps.values()) - min(found.stamps.values())) / NS


@given(st.permutations([n for n in ('front', 'wrist', 'joints') for _ in range(6)]))
def test_the_order_in_which_streams_arrive_does_not_matter(arrivals):
    streams, sent = make(), dict.fromkeys(('front', 'wrist', 'joints'), 0)
    for name in arrivals:
        streams.put(name, T0 + sent[name] * 50 * MS, (name, sent[name]), T0 + 250 * MS)
        sent[name] += 1
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
