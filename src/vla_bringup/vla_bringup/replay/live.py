"""Runs the policy node on a bag over DDS: in its own ROS domain, in shadow, on the clock of the bag."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import domain_coordinator
import numpy as np
from rclpy.publisher import Publisher
from rosgraph_msgs.msg import Clock
from std_msgs.msg import Header, String

from vla_bringup.bags.message_types import message_class
from vla_bringup.demo.demo import interruptible
from vla_bringup.processes.nodes import NodeSpec, policy_nodes
from vla_bringup.processes.probe import Probe, TransitionFailed
from vla_bringup.processes.supervisor import NodeEnded, Supervisor
from vla_bringup.replay.feed import DESCRIPTION, Feed
from vla_bringup.replay.offline import Run
from vla_bringup.replay.session import Cycle, Due
from vla_core.observe.streams import NS
from vla_model.loading import describe
from vla_model.types import Chunk
from vla_msgs.msg import ActionChunk, PolicyStatus
from vla_policy_node.policy.lockstep import CLOCK, INSTRUCTION
from vla_policy_node.ros import qos
from vla_policy_node.ros.chunk_msg import to_ns, to_time
from vla_training.bag import Message

RESEND, PATIENCE = 1.0, 30.0  # [s] a message without ~/ack is sent again; time limit of that
ANSWER = 120.0  # [s] for one chunk: a large model on a CPU
CONFIGURE = 600.0  # [s] to load the model


@dataclass(frozen=True)
class NodeSettings:
    """Parameters of the policy node."""

    robot: str
    namespace: str
    model: str
    device: str
    engine: str
    threads: int
    seed: int
    rate: float


def policy_spec(s: NodeSettings, feed: Feed) -> NodeSpec:
    """Return the policy node in shadow and in lock-step, with the topics of the bag."""
    setup = feed.setup
    namespace = setup.namespace
    more: dict[str, Any] = {
        'engine': s.engine,
        'image_engine': 'eager',  # as in offline mode: equal images give equal chunks
        'image_dtype': 'float32',
        'threads': s.threads,
        'seed': s.seed,
        'inpaint': 'never',  # the arm in the bag does not follow these chunks
        'lockstep': True,
        'plan_rate': 0.0,
        'imagine_rate': 0.0,
        'cameras': list(setup.cameras),
        'camera_topics': list(setup.cameras.values()),
        'topics.joint_states': setup.joint_states,
        'topics.gripper_joint_states': setup.gripper_joint_states,
    }
    return policy_nodes(
        s.robot,
        namespace=namespace,
        model=s.model,
        device=s.device,
        rate=s.rate,
        use_sim_time=True,
        policy_parameters=more,
    )[-1]


def run_live(feed: Feed, run: Run, settings: NodeSettings, logs: Path, real_time_factor: float) -> None:
    """Send the whole bag to the policy node, and store its chunks in `run`.

    real_time_factor 0: wait for each chunk; the chunks are those of run_offline. Above 0: multiple of the bag's pace.
    No message is lost, but the model may be too slow for some sets. Raises ValueError with the failure and the end of
    the node's log.
    """
    urdf = feed.description() if needs_description(settings.model) else ''
    with domain_coordinator.domain_id() as domain:  # unused on this machine: no arm receives the messages
        environment = {'ROS_DOMAIN_ID': str(domain)}
        try:
            with interruptible(), Supervisor(logs, environment) as supervisor:
                supervisor.start(policy_spec(settings, feed))
                with Probe('replay', feed.setup.namespace, int(domain)) as probe:
                    probe.check = supervisor.check
                    _play(Player(probe, feed, run, urdf), feed, run, real_time_factor)
        except TransitionFailed as error:
            raise ValueError(f'{error}:\n{supervisor.last_lines(error.node)}') from error
        except (NodeEnded, TimeoutError) as error:
            raise ValueError(str(error)) from error


def _play(player: 'Player', feed: Feed, run: Run, factor: float) -> None:
    session = run.session
    if session.instruction:
        player.instruct(session.instruction)
    began: tuple[float, int] | None = None  # wall time [s] and the bag's [ns]
    last = -1  # [ns]

    def look() -> None:
        while factor == 0 and (due := session.look()) is not None:
            player.answer(due)
        if factor:
            session.look()  # counts unusable sets
            player.collect()

    for now, message in feed:
        if session.step(now):
            if factor:
                began = (time.monotonic(), now) if began is None or now < last else began
                last = now
                player.spin_until(began[0] + (now - began[1]) / NS / factor)
            player.clock(now)
            look()
        instructed = session.take(message)
        if message.topic in feed.inputs:
            player.send(message)
        elif instructed:
            player.instruct(session.instruction)
        look()
    if factor:
        player.spin_until(time.monotonic() + 1.0)
        player.collect()


class Player:
    """Sends clock and messages one by one, each after the ~/ack of the one before."""

    def __init__(self, probe: Probe, feed: Feed, run: Run, urdf: str) -> None:
        self._probe, self._feed, self._run = probe, feed, run
        self._taken: dict[str, int | None] = {}  # stream -> newest taken stamp [ns]; None: not yet
        self._chunks: list[tuple[ActionChunk, int]] = []  # with the bag's time of receipt [ns]
        self._failure = self._status = ''
        self._now = 0
        node, policy = probe.node, f'{feed.setup.namespace}/policy'
        node.create_subscription(Header, f'{policy}/ack', self._on_ack, qos.CHANGES)
        chunks = node.create_subscription(ActionChunk, 'action_chunk', self._on_chunk, qos.CHANGES)
        node.create_subscription(PolicyStatus, f'{policy}/status', self._on_status, qos.STATUS)
        self._clock = node.create_publisher(Clock, '/clock', qos.STATUS)
        self._instruction = node.create_publisher(String, f'{policy}/instruction', qos.LATCHED)
        if urdf:
            self._description = node.create_publisher(String, DESCRIPTION, qos.LATCHED)
            self._description.publish(String(data=urdf))
        self._publishers: dict[str, Publisher] = {
            topic: node.create_publisher(message_class(kind), topic, qos.SENSOR_OUT)
            for topic, kind in feed.inputs.items()
        }
        probe.bring_up(policy, CONFIGURE)
        mine = [self._clock, self._instruction, *self._publishers.values()]
        probe.wait(
            lambda: all(p.get_subscription_count() for p in mine) and node.count_publishers(chunks.topic_name),
            PATIENCE,
            'the policy node subscribes to the topics of the bag',
        )

    def clock(self, now: int) -> None:
        """Send the bag's clock [ns]."""
        self._now = now
        self._deliver(CLOCK, now, lambda: self._clock.publish(Clock(clock=to_time(now))))

    def send(self, m: Message) -> None:
        """Send a recorded message of a camera or of joints."""
        raw, stamp = bytes(m.raw), to_ns(m.data.header.stamp)
        self._deliver(m.topic, stamp, lambda: self._publishers[m.topic].publish(raw))

    def instruct(self, words: str) -> None:
        self._taken[INSTRUCTION] = None
        self._instruction.publish(String(data=words))  # once: a second message would be another instruction
        self._probe.wait(lambda: self._taken[INSTRUCTION] is not None, PATIENCE, 'the policy node takes an instruction')

    def answer(self, due: Due) -> None:
        """Wait for the chunk that is due now. Raises ValueError for another chunk, or none."""
        try:
            self._probe.wait(lambda: self._chunks or self._failure, ANSWER, '')
        except TimeoutError:
            raise ValueError(
                f'the policy node does not answer to {due.aligned.t_ref / NS:.3f} s within {ANSWER:g} s; '
                f'its status: {self._status or "nothing wrong"}'
            ) from None
        if self._failure:
            raise ValueError(self._failure)
        msg, _ = self._chunks.pop(0)
        if (to_ns(msg.header.stamp), msg.instruction) != (due.aligned.t_ref, due.instruction) or self._chunks:
            raise ValueError(
                f'the policy node answered to {to_ns(msg.header.stamp) / NS:.3f} s ("{msg.instruction}") where the bag '
                f'has a set for {due.aligned.t_ref / NS:.3f} s ("{due.instruction}"): stop other publishers in this '
                'ROS domain'
            )
        self._keep(msg, due.now, due.shift, due.images)

    def collect(self) -> None:
        """Store the chunks that were received so far."""
        while self._chunks:
            msg, at = self._chunks.pop(0)
            session = self._run.session
            self._keep(msg, at, session.shift_of(to_ns(msg.header.stamp)), session.images)
        if self._failure:
            raise ValueError(self._failure)

    def spin_until(self, wall: float) -> None:
        """Spin until this time.monotonic() [s]."""
        if (left := wall - time.monotonic()) > 0:
            self._probe.spin(left)

    def _keep(self, msg: ActionChunk, at: int, shift: int, images: int) -> None:
        dof = len(msg.joint_names)
        chunk = Chunk(
            positions=np.array(msg.positions, float).reshape(msg.horizon, dof),
            gripper=np.array(msg.gripper, float),
            dt=msg.dt,
            frozen=msg.frozen_steps,
            confidence=np.array(msg.confidence, np.float32),
        )
        taken = to_ns(msg.inference_time) / NS
        self._run.cycles.append(Cycle(to_ns(msg.header.stamp), at, msg.instruction, chunk, taken, shift, images))
        self._run.model_id = msg.model_id

    def _deliver(self, what: str, stamp: int, publish: Callable[[], None]) -> None:
        """Publish until the node reports it taken; a repetition has no effect."""
        self._taken[what] = None
        give_up = time.monotonic() + PATIENCE
        while self._taken[what] != stamp:
            publish()
            try:
                self._probe.wait(lambda: self._taken[what] == stamp, RESEND, '')
            except TimeoutError:
                if time.monotonic() > give_up:
                    raise TimeoutError(f'the policy node has taken nothing on {what} for {PATIENCE:g} s') from None

    def _on_ack(self, msg: Header) -> None:
        self._taken[msg.frame_id] = to_ns(msg.stamp)

    def _on_chunk(self, msg: ActionChunk) -> None:
        if msg.horizon:
            self._chunks.append((msg, self._now))

    def _on_status(self, msg: PolicyStatus) -> None:
        self._status = msg.message
        if msg.code == PolicyStatus.INFERENCE_FAILED:
            self._failure = msg.message


def needs_description(model: str) -> bool:
    """Return whether the model's actions are end-effector poses, for which the policy node needs the URDF."""
    return not describe(model).joints
