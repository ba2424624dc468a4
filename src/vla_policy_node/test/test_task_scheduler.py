"""Decode tasks between actions, on a clock that only the model's work and the images move."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vla_core.observe.streams import NS
from vla_core.stats import LongestButOne
from vla_model.types import Observation
from vla_policy_node.policy.task_scheduler import (
    FEWEST,
    MARGIN,
    MEMORY,
    PATIENCE,
    SLACK,
    DecodeTask,
    FramePeriodEstimator,
    TaskScheduler,
)


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Job:
    """Each step takes the time that `step_times` says next."""

    def __init__(self, rig, kind, observation, steps):
        self.rig, self.kind, self.left, self.result = rig, kind, steps, None
        self.observation = observation

    def step(self):
        duration = next(self.kind.times)
        self.rig.clock.now += duration
        self.rig.log.append((self.kind.name, self.observation.instruction, duration))
        if self.kind.error is not None:
            raise self.kind.error
        self.left -= 1
        if self.left == 0:
            self.result = self.observation.t_ref
        return self.left == 0


class Kind:
    """A task in the rig. times: a step's duration [s], or an iterator of them."""

    def __init__(self, rig, name, rate, steps, times):
        self.rig, self.name, self.times = rig, name, itertools.repeat(times) if isinstance(times, float) else times
        self.wanted, self.error, self.results, self.reported = True, None, [], []
        self.task = DecodeTask(
            name,
            rate,
            start=lambda seen: Job(rig, self, seen, steps),
            trial=lambda seen: Job(rig, self, seen, min(steps, 3)),
            wanted=lambda: self.wanted,
            deliver=lambda owner, result: self.results.append((owner, result)),
            report=lambda message, error: self.reported.append(message),
            clock=rig.clock,
        )


class Rig:
    """The worker's loop: act on the newest set, else a step, else wait for the next set.

    kinds: (name, rate, steps, time of a step). period [s] between stamps, speed: observation time per wall time,
    delay(i): how late [s] set i arrives.
    """

    def __init__(self, *kinds, act=0.03, period=0.1, speed=1.0, delay=lambda i: 0.0, warm=True):
        self.clock, self.log, self.waits = Clock(), [], []
        self.act, self.period, self.speed, self.delay = act, period, speed, delay
        self.kinds = {kind[0]: Kind(self, *kind) for kind in kinds}
        self.scheduler = TaskScheduler([kind.task for kind in self.kinds.values()], clock=self.clock)
        if warm:
            self.scheduler.warm_up(lambda grey: observation(0, 'warm up'), lambda seen: self._spend(act))
        self.owner, self.used = ('task', 1), -1
        self.began, self.log = self.clock.now, []

    def _spend(self, seconds):
        self.clock.now += seconds

    def arrival(self, i):
        return self.began + i * self.period / self.speed + self.delay(i)

    def run(self, seconds):
        """Of wall time."""
        end = self.clock.now + seconds
        while self.clock.now < end:
            newest = self.used
            # Not a rounding error later: else a set that comes as an action ends is seen in one run and not in another.
            while self.arrival(newest + 1) <= self.clock.now + 1e-9:
                newest += 1
            if newest > self.used:
                self.waits.append(max(self.clock.now - self.arrival(newest), 0.0))
                self._spend(self.act)
                self.log.append(('act', self.owner[0], self.act))
                seen = observation(round(newest * self.period * NS), self.owner[0])
                self.scheduler.acted(self.owner, seen, self.arrival(newest), self.act)
                self.used = newest
            elif not self.scheduler.step(self.owner):
                self.clock.now = self.arrival(self.used + 1)
        return self


def observation(t_ref, instruction):
    return Observation(t_ref, {}, np.zeros(7), np.zeros(7), 0.0, instruction)


def test_both_kinds_come_at_their_rates_and_no_action_waits():
    rig = Rig(('plan', 0.5, 20, 0.02), ('imagine', 0.2, 18, 0.015)).run(20.0)
    assert len(rig.kinds['plan'].results) == pytest.approx(10, abs=1)
    assert len(rig.kinds['imagine'].results) == pytest.approx(4, abs=1)
    assert len(rig.waits) == pytest.approx(200, abs=1)
    assert max(rig.waits) == 0
    starts = np.diff([t_ref for _, t_ref in rig.kinds['plan'].results]) / NS
    assert starts[1:] == pytest.approx(2.0, abs=0.01)


@settings(max_examples=60)
@given(
    act=st.floats(0.005, 0.12),
    step=st.floats(0.002, 0.15),
    speed=st.floats(0.1, 4.0),
    steps=st.integers(1, 20),
    jitter=st.floats(0.0, 0.02),
    seed=st.integers(0, 1000),
)
@example(act=0.1, step=0.125, speed=2.0, steps=1, jitter=0.0, seed=0)
@example(act=0.04296875, step=0.0546875, speed=0.953125, steps=1, jitter=0.015625, seed=278)
def test_steps_that_take_what_was_expected_never_keep_an_action_waiting(act, step, speed, steps, jitter, seed):
    """No longer than images jitter, and more cannot be known of them; they are up to so late, every tenth on time."""
    delays = np.random.default_rng(seed).uniform(0, jitter, 1000)
    delays[:FEWEST] = delays[::10] = 0.0
    makes = {'act': act, 'speed': speed, 'delay': lambda i: float(delays[i % 1000])}
    alone, beside = Rig(**makes).run(5.0), Rig(('plan', 2.0, steps, step), **makes).run(5.0)
    assert len(beside.waits) == len(alone.waits)
    assert max(np.subtract(beside.waits, alone.waits)) <= jitter + 1e-9
    fits = act + step * MARGIN + SLACK < 0.09 / speed - jitter
    assert bool(beside.kinds['plan'].results) or not fits or steps > 10


@settings(max_examples=60)
@given(times=st.lists(st.floats(0.001, 0.3), min_size=5, max_size=50), act=st.floats(0.005, 0.09))
def test_a_due_action_waits_for_one_step_at_most_however_wrong_the_estimate(times, act):
    rig = Rig(('plan', 10.0, 7, itertools.cycle(times)), ('imagine', 10.0, 5, itertools.cycle(times)), act=act)
    rig.run(5.0)
    names = [name for name, _, _ in rig.log]
    for i, wait in zip([i for i, name in enumerate(names) if name == 'act'], rig.waits, strict=True):
        before = rig.log[i - 1] if i else None
        assert wait <= 1e-9 or (before is not None and wait <= before[2] + 1e-9)


def test_a_slow_step_delays_one_action_and_its_kind_continues():
    slow = itertools.chain([0.02] * 100, [0.1], itertools.repeat(0.02))
    rig = Rig(('plan', 10.0, 10**6, slow), act=0.03).run(MEMORY / 2)
    assert [w for w in rig.waits if w > 0] == [pytest.approx(0.07, abs=0.04)]
    assert rig.kinds['plan'].reported == []
    assert sum(name == 'plan' for name, _, _ in rig.log) == pytest.approx(MEMORY / 2 * 30, abs=20)


def test_two_slow_steps_delay_two_actions_and_are_remembered():
    slow = itertools.chain([0.02] * 100, [0.1], [0.02] * 20, [0.1], itertools.repeat(0.02))
    rig = Rig(('plan', 10.0, 10**6, slow), act=0.03).run(MEMORY / 2)
    assert [w for w in rig.waits if w > 0] == [pytest.approx(0.07, abs=0.04)] * 2
    kind = rig.kinds['plan']
    assert 'plan waits' in kind.task.starving
    rig.run(MEMORY)  # then it counts no longer
    assert kind.task.starving == ''
    mark = len(rig.log)
    rig.run(5.0)
    assert sum(name == 'plan' for name, _, _ in rig.log[mark:]) == pytest.approx(150, abs=5)
    assert len([w for w in rig.waits if w > 0]) == 2


def test_a_task_that_can_never_fit_is_reported_once_and_never_started():
    rig = Rig(('plan', 0.5, 4, 0.08), ('imagine', 0.5, 4, 0.02), act=0.03).run(20.0)
    plan, imagine = rig.kinds.values()
    assert not [name for name, _, _ in rig.log if name == 'plan']
    assert len(plan.reported) == 1
    assert plan.reported[0] == plan.task.starving
    assert 'Lower rate' in plan.reported[0]
    assert imagine.reported == []
    assert len(imagine.results) == pytest.approx(10, abs=1)  # the other one goes on
    assert max(rig.waits) == 0
    rig.period, rig.began, rig.used = 0.2, rig.clock.now, -1  # the remedy
    rig.owner = ('another', 1)
    rig.run(10.0)
    assert plan.task.starving == ''
    assert len(plan.results) >= 4


def test_patience_is_counted_in_gaps():
    rig = Rig(('plan', 0.5, 4, 0.08), act=0.03)
    rig.run((PATIENCE + FEWEST - 3) * rig.period)
    assert rig.kinds['plan'].reported == []
    rig.run(5 * rig.period)
    assert len(rig.kinds['plan'].reported) == 1


def test_gaps_are_measured_on_the_wall():
    """At a quarter of real time there are four times as many steps in a gap; at four times real time there is none."""
    counts = {}
    for speed in (0.25, 1.0, 4.0):
        rig = Rig(('plan', 10.0, 10**6, 0.02), act=0.02, speed=speed).run(20.0 / speed)
        counts[speed] = sum(name == 'plan' for name, _, _ in rig.log) / len(rig.waits)
        assert max(rig.waits) == 0
    assert counts[1.0] == pytest.approx(3, abs=0.2)
    assert counts[0.25] == pytest.approx(17, abs=1.5)
    assert counts[4.0] == 0


def test_the_rate_is_in_observation_time():
    rig = Rig(('plan', 0.5, 4, 0.01), act=0.02, speed=0.5).run(40.0)
    assert len(rig.kinds['plan'].results) == pytest.approx(10, abs=1)


@pytest.mark.parametrize('owner', [('another task', 1), ('task', 2)])
def test_a_new_instruction_or_epoch_drops_what_is_under_way(owner):
    rig = Rig(('plan', 10.0, 40, 0.02)).run(1.5)
    kind, old = rig.kinds['plan'], rig.owner
    done = len(kind.results)
    while rig.log[-1][0] != 'act':
        rig.run(1e-6)  # one thing
    assert not rig.scheduler.step(owner)  # an action for it comes first
    assert rig.scheduler.step(old)
    rig.owner = owner
    mark = len(rig.log)
    rig.run(3.0)
    assert kind.task.dropped == 1
    assert {name for name, _, _ in rig.log[mark:]} == {'act', 'plan'}
    assert {instruction for _, instruction, _ in rig.log[mark:]} == {owner[0]}
    assert [o for o, _ in kind.results[done:]] == [owner] * len(kind.results[done:])
    assert old not in [o for o, _ in kind.results[done:]]
    assert len(kind.results) > done


def test_a_clock_that_goes_back_drops_what_is_under_way_and_the_next_one_starts():
    rig = Rig(('plan', 0.1, 40, 0.02)).run(1.0)
    rig.began, rig.used = rig.clock.now, -1
    rig.run(3.0)
    assert rig.kinds['plan'].task.dropped == 1
    assert [t_ref for _, t_ref in rig.kinds['plan'].results] == [round((FEWEST - 1) * rig.period * NS)]


@pytest.mark.parametrize('where', ['step', 'deliver', 'start'])
def test_a_task_that_fails_is_reported_once_tried_again_and_stops_nothing(where):
    rig = Rig(('plan', 1.0, 3, 0.01), ('imagine', 1.0, 3, 0.01))
    plan = rig.kinds['plan']

    def fail(*_):
        raise RuntimeError('out of memory')

    real = plan.task._start, plan.task._deliver
    if where == 'step':
        plan.error = RuntimeError('out of memory')
    elif where == 'start':
        plan.task._start = fail
    else:
        plan.task._deliver = fail
    rig.run(10.0)
    assert plan.reported == ['plan failed, trying again: out of memory']
    assert plan.task.failure == plan.reported[0]
    assert plan.results == []
    assert len(rig.kinds['imagine'].results) == pytest.approx(10, abs=1)
    assert len(rig.waits) == pytest.approx(100, abs=1)
    plan.error, (plan.task._start, plan.task._deliver) = None, real
    rig.run(3.0)
    assert plan.task.failure == ''
    assert len(plan.results) >= 2


def test_nothing_is_begun_without_a_subscriber():
    rig = Rig(('plan', 1.0, 3, 0.01))
    kind = rig.kinds['plan']
    kind.wanted = False
    rig.run(3.0)
    assert {name for name, _, _ in rig.log} == {'act'}
    kind.wanted = True
    rig.run(3.0)
    assert len(kind.results) == pytest.approx(3, abs=1)


def test_the_one_that_is_late_comes_first():
    """Together they want more than there is: both get some, neither waits for ever."""
    rig = Rig(('plan', 2.0, 20, 0.02), ('imagine', 1.0, 20, 0.02)).run(40.0)
    plans, images = (len(kind.results) for kind in rig.kinds.values())
    assert plans + images == pytest.approx(40 * 10 * 3 / 20, rel=0.1)
    assert min(plans, images) >= 15
    assert max(rig.waits) == 0


def test_the_first_estimate_is_that_of_the_warm_up_and_follows_the_machine():
    """Measured on a machine three times as busy: an action tells how busy it is now."""
    rig = Rig(('plan', 1.0, 4, 0.06), act=0.09, warm=False)
    rig.scheduler.warm_up(lambda grey: observation(0, 'warm up'), lambda seen: rig._spend(rig.act))
    rig.act, kind = 0.03, rig.kinds['plan']
    kind.times = itertools.repeat(0.02)
    rig.began = rig.clock.now
    rig.run(5.0)
    assert kind.task.need(0.03) == pytest.approx(0.02 * MARGIN + SLACK)
    assert len(kind.results) == pytest.approx(5, abs=1)
    assert max(rig.waits) == 0


def test_a_model_that_fails_at_warm_up_reports_it():
    rig = Rig(('plan', 1.0, 3, 0.01), warm=False)
    rig.kinds['plan'].error = ValueError('plan_tokens')
    with pytest.raises(ValueError, match='plan_tokens'):
        rig.scheduler.warm_up(lambda grey: observation(0, 'warm up'), lambda seen: None)


def test_the_estimator_knows_the_earliest_time_of_the_next_set():
    pace, ms = FramePeriodEstimator(), 1_000_000
    for i, late in enumerate((0.0, 0.030, 0.010, 0.0, 0.040)):
        assert pace.due == -math.inf or i >= FEWEST
        pace.add(i * 100 * ms, 5.0 + i * 0.1 + late)
    assert pace.due <= 5.5 + 0.02  # the newest was 40 ms late, the next one need not be
    assert pace.due > 5.45
    pace.add(1000 * ms, 6.0)  # some were passed over: the usual step counts
    assert pace.due == pytest.approx(6.1, abs=0.01)
    pace.add(1000 * ms, 7.0)  # the same again tells nothing
    assert pace.due == pytest.approx(6.1, abs=0.01)
    pace.add(0, 8.0)  # the clock went back
    assert pace.due == -math.inf


@given(st.lists(st.tuples(st.floats(0, 5), st.floats(0, 1)), min_size=1, max_size=50))
def test_longest_is_the_longest_but_one_of_the_span(values):
    longest, now, seen = LongestButOne(3.0), 0.0, []
    for gap, duration in values:
        now += gap
        longest.add(now, duration)
        seen.append((now, duration))
        assert longest.value(now) == sorted([0.0, *(d for t, d in seen if now - t <= 3.0)])[-2]
    assert longest.value(now + 3.1) == 0.0
