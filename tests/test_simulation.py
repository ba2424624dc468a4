"""Simulator, executor, expert and policy together, as the demo runs them."""

import numpy as np
from lifecycle_msgs.msg import Transition
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy, qos_profile_sensor_data
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, Image, JointState
from std_msgs.msg import Bool, String

from vla_msgs.msg import ActionChunk, ExecutorStatus, PolicyStatus
from vla_msgs.srv import ResetEpisode
from vla_policy_node.ros.chunk_msg import to_ns

LATCHED = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)


def test_expert_drives_to_success_and_policy_shadows(graph):
    sim = {'use_sim_time': 'true'}
    graph.start('vla_sim', 'sim_node', params={'task': 'press_button', 'seed': '4'})
    graph.start('vla_sim', 'expert_node', params=sim)
    graph.start('vla_policy_node', 'executor_node', params=sim)
    graph.start('vla_policy_node', 'policy_node', params={**sim, 'drive': 'false'})
    success = graph.latest(Bool, 'sim/success', LATCHED)
    chunks = graph.latest(ActionChunk, 'action_chunk', 50)
    status = graph.latest(ExecutorStatus, 'executor/status', LATCHED)
    policy = graph.latest(PolicyStatus, 'policy/status', 10)
    images = {c: graph.latest(Image, f'{c}/image_raw', qos_profile_sensor_data) for c in ('front', 'wrist')}
    infos = {c: graph.latest(CameraInfo, f'{c}/camera_info', qos_profile_sensor_data) for c in ('front', 'wrist')}
    joints = graph.latest(JointState, 'joint_states', qos_profile_sensor_data)
    clock = graph.latest(Clock, '/clock', qos_profile_sensor_data)
    task = graph.latest(String, 'sim/task', LATCHED)

    graph.bring_up('policy', 'executor')
    instruction = graph.node.create_publisher(String, 'policy/instruction', LATCHED)
    instruction.publish(String(data=graph.wait(lambda: task and task[-1].data, what='the task in words')))
    graph.wait(lambda: success and success[-1].data, timeout=60, what='success')
    graph.wait(lambda: any(c.shadow for c in chunks), what='shadow chunks')

    assert status[-1].source == '/expert' or status[-1].state == ExecutorStatus.STATE_HOLDING
    assert status[-1].verdict_counts[ExecutorStatus.REJECT_SHADOW] > 0
    assert {c.source for c in chunks if not c.shadow} == {'/expert'}
    assert policy[-1].code == PolicyStatus.OK, policy[-1].message
    for camera in ('front', 'wrist'):
        image, info = images[camera][-1], infos[camera][-1]
        assert (image.width, image.height, image.encoding) == (256, 256, 'rgb8')
        assert image.header.frame_id == info.header.frame_id == f'{camera}_camera_optical_frame'
        pixels = np.frombuffer(image.data, np.uint8)
        assert pixels.std() > 10  # a scene, not a blank
        stamp = to_ns(image.header.stamp)  # what goes with it is another message, and may come after it
        graph.wait(lambda: stamp in [to_ns(i.header.stamp) for i in infos[camera]], what='its camera_info')  # noqa: B023
    stamps = np.array([to_ns(m.header.stamp) for m in joints]) * 1e-9
    assert np.median(np.diff(stamps)) <= 0.0101
    assert (np.diff([to_ns(c.clock) for c in clock]) > 0).all()
    speed = np.abs([m.velocity[:7] for m in joints]).max()
    assert speed < 2.2

    # A new episode while everything runs: the arm is put elsewhere, the executor must be told.
    assert graph.transition('executor', Transition.TRANSITION_DEACTIVATE)
    answer = graph.call(ResetEpisode, 'sim/reset', ResetEpisode.Request(task='stack_block', seed=1))
    assert answer.success
    assert 'block' in answer.instruction
    assert not graph.call(ResetEpisode, 'sim/reset', ResetEpisode.Request(task='make_coffee', seed=1)).success
