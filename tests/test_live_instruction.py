"""Other words while the arm moves: simulator, executor and policy as processes, over DDS."""

import pytest
from rclpy.action import ActionClient
from std_msgs.msg import String

from vla_bench.faults.faults import gentle_model
from vla_bringup.processes.nodes import policy_nodes, sim_nodes
from vla_bringup.processes.probe import Probe
from vla_bringup.processes.supervisor import Supervisor
from vla_msgs.action import ExecuteInstruction
from vla_msgs.msg import ActionChunk, ExecutorStatus
from vla_policy_node.ros import qos

E = ExecutorStatus
FIRST, SECOND = 'press the red button', 'press the blue button'


@pytest.mark.slow
@pytest.mark.parametrize('how', ['new_epoch', 'seamless'])
def test_other_words_change_a_running_goal(domain, tmp_path, how):
    executor, policy = policy_nodes(
        'sim_panda',
        model=str(gentle_model(tmp_path / 'model', 0)),
        drive=True,
        rate=5.0,
        use_sim_time=True,
        policy_parameters={'instruction_change': how, 'threads': 1},
    )
    sim = sim_nodes(expert=False, real_time_factor=0.5)[0]  # time to think on a busy machine
    with Supervisor(tmp_path / 'logs') as supervisor, Probe('test', domain_id=domain) as probe:
        for spec in (sim, executor, policy):
            supervisor.start(spec)
        probe.check = supervisor.check
        said, feedback, seen = [], [], []  # chunks; feedback; (state, epoch) of the executor, each once
        node = probe.node
        node.create_subscription(ActionChunk, 'action_chunk', said.append, qos.CHUNK)

        def on_status(msg):
            if not seen or seen[-1] != (msg.state, msg.epoch):
                seen.append((msg.state, msg.epoch))

        node.create_subscription(E, 'executor/status', on_status, qos.LATCHED)
        words = node.create_publisher(String, 'policy/instruction', qos.LATCHED)
        goals = ActionClient(node, ExecuteInstruction, 'policy/execute_instruction')
        for name in (policy.full_name, executor.full_name):
            probe.bring_up(name, 120.0)
        probe.wait(goals.server_is_ready, 30.0, 'the action')
        sent = goals.send_goal_async(
            ExecuteInstruction.Goal(instruction=FIRST), feedback_callback=lambda m: feedback.append(m.feedback)
        )
        probe.wait(sent.done, 30.0, 'the goal is answered')
        probe.wait(lambda: seen and seen[-1][0] == E.STATE_EXECUTING, 60.0, 'the arm moves')
        epoch, mark, first = seen[-1][1], len(seen), len(said)

        words.publish(String(data=SECOND))
        probe.wait(lambda: feedback and feedback[-1].instruction == SECOND, 30.0, 'feedback with the new words')
        probe.wait(
            lambda: any(c.instruction == SECOND for c in said) and seen[-1][0] == E.STATE_EXECUTING, 60.0, 'it goes on'
        )
        stops = [c for c in said[first:] if c.horizon == 0]
        if how == 'new_epoch':
            assert len(stops) == 1
            rest = next(i for i, s in enumerate(seen) if i >= mark and s == (E.STATE_HOLDING, seen[mark][1]))
            assert [s for s, _ in seen[mark : rest + 1]] == [E.STATE_BRAKING, E.STATE_HOLDING]
            assert seen[mark][1] == epoch + 1
            assert all(c.epoch > epoch for c in said if c.instruction == SECOND)
        else:
            assert not stops
        assert all(c.instruction == SECOND for c in said[[c.instruction for c in said].index(SECOND) :])

        probe.wait(lambda: feedback[-1].horizon_left > 0 and feedback[-1].limit_margin > 0, 30.0, 'margins')
        handle = sent.result()
        result = handle.get_result_async()
        handle.cancel_goal_async()
        probe.wait(result.done, 30.0, 'the result')
        got = result.result().result
        assert (got.outcome, got.instruction, got.changes) == (got.OUTCOME_CANCELLED, SECOND, 1)
        assert got.chunks >= 2 and got.latency_p50 > 0
        goals.destroy()
