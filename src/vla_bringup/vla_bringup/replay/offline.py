"""Runs the model on a bag without a ROS graph, as fast as possible."""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from vla_bringup.replay.feed import Feed
from vla_bringup.replay.session import Cycle, Due, Session
from vla_core.observe.prediction_error import PredictionMatcher, prediction_error
from vla_core.observe.streams import NS
from vla_model.policy import IMAGE, PLAN, ImageOptions, PlanOptions, Policy, finish, no_output
from vla_model.types import Observation
from vla_policy_node.policy.adapt_to_robot import adapt_to_robot
from vla_policy_node.policy.inference import check_chunk, to_observation

ZERO, MEASURED, RECORDED = 'zero', 'measured', 'recorded'
PLANS = PlanOptions(threshold=0.9, cached=True)  # as in the policy node
IMAGES = ImageOptions(steps=18, cached=True)


@dataclass
class Run:
    """Outputs of one model on one bag."""

    model_id: str
    session: Session
    trained: bool = True
    cycles: list[Cycle] = field(default_factory=list)
    # These times [ns] are on the increasing axis, see Session.
    plans: list[tuple[int, str]] = field(default_factory=list)  # t_ref, words
    prediction_errors: list[tuple[int, float]] = field(
        default_factory=list
    )  # (time of the predicted image [ns], error 0..1)
    failures: list[tuple[int, str]] = field(default_factory=list)  # (t_ref [ns], reason of a failed inference)


def parse_latency(text: str) -> str | float:
    """Return 'zero', 'measured', 'recorded', or the number of seconds. Raises ValueError for other texts."""
    if text in (ZERO, MEASURED, RECORDED):
        return text
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 60:
        raise ValueError(f'--latency must be {ZERO}, {MEASURED}, {RECORDED} or 0 to 60 seconds, got {text!r}')
    return seconds


def prepare(policy: Policy, feed: Feed, model: str) -> Policy:
    """Return the policy, adapted to the robot of the bag and warmed up. Raises ValueError when they do not fit."""
    policy = adapt_to_robot(policy, feed.setup.profile, feed.setup.cameras, model, feed.description)
    policy.warm_up()
    return policy


class Asker:
    """Runs the model and stores its outputs.

    latency: inference time on the clock of the bag, see parse_latency; new sets are skipped meanwhile. plan_rate,
    imagine_rate: highest rates of plan texts and predicted images in time of the bag [Hz]; 0: none.
    """

    def __init__(
        self, run: Run, policy: Policy, latency: str | float = ZERO, plan_rate: float = 0.0, imagine_rate: float = 0.0
    ) -> None:
        self.run, self._policy, self._latency = run, policy, latency
        self._camera, self._prepared = policy.info.cameras[0], ''
        self._works: list[tuple[int, Callable[[Observation], None]]] = []
        for output in (o for o, rate in ((PLAN, plan_rate), (IMAGE, imagine_rate)) if rate):
            if output not in policy.info.outputs:
                raise no_output(policy.info, output)
        if plan_rate:
            self._works.append((round(NS / plan_rate), self._plan))
        if imagine_rate:
            self._works.append((round(NS / imagine_rate), self._imagine))
        self._next = [-(2**63)] * len(self._works)  # [ns] next time of each
        self._matcher, self._shift = PredictionMatcher(), 0

    def __call__(self, due: Due) -> None:
        session, aligned = self.run.session, due.aligned
        observation = to_observation(aligned, due.instruction)
        if due.shift != self._shift:  # a clock was set back: predicted images are of another time
            self._matcher, self._shift = PredictionMatcher(), due.shift
        self._saw(observation)
        if due.instruction != self._prepared:  # as in the node: graphs of other shapes round differently
            self._prepared = due.instruction
            with suppress(ValueError, RuntimeError, OSError):  # which `act` raises again
                self._policy.prepare(due.instruction)
        begun = time.perf_counter()
        try:
            chunk = self._policy.act(observation).chunk
            check_chunk(chunk, session.setup.profile.dof)
        except Exception as error:  # INFERENCE_FAILED in the node
            self.run.failures.append((aligned.t_ref, str(error)))
            return
        taken = time.perf_counter() - begun
        latency = self._seconds(taken)
        at = due.now + round(latency * NS)
        self.run.cycles.append(Cycle(aligned.t_ref, at, due.instruction, chunk, taken, due.shift, due.images))
        session.busy(round(latency * NS))
        for i, (interval, work) in enumerate(self._works):
            if aligned.t_ref >= self._next[i] or self._next[i] - aligned.t_ref > interval:  # the clock went back
                self._next[i] = aligned.t_ref + interval
                work(observation)

    def _seconds(self, taken: float) -> float:
        if self._latency == MEASURED:
            return taken
        if self._latency == RECORDED:
            return self.run.session.inference_times[-1] if self.run.session.inference_times else 0.0
        return 0.0 if self._latency == ZERO else float(self._latency)

    def _plan(self, observation: Observation) -> None:
        plan = finish(self._policy.start(PLAN, observation, PLANS))
        self.run.plans.append((plan.t_ref + self._shift, plan.text))

    def _imagine(self, observation: Observation) -> None:
        image = finish(self._policy.start(IMAGE, observation, IMAGES))
        self._matcher.begin(image.t_ref, image.due, observation.images[self._camera])
        self._matcher.predicted(observation.instruction, image)

    def _saw(self, observation: Observation) -> None:
        """Compare the images of a set with the predicted image of that time."""
        self._matcher.observed(observation.t_ref, observation.images[self._camera])
        while self._matcher.ready:
            pair = self._matcher.take()
            if pair is not None and pair.owner == observation.instruction:
                self.run.prediction_errors.append(
                    (pair.due + self._shift, prediction_error(pair.before, pair.predicted, pair.observed))
                )


def run_offline(feed: Feed, session: Session, ask: Callable[[Due], None]) -> None:
    """Run the session over the whole bag; ask is called for each set that is due."""
    for now, message in feed:
        if session.step(now):
            while (due := session.look()) is not None:
                ask(due)
        session.take(message)
        while (due := session.look()) is not None:
            ask(due)
