"""A policy behind a server drives an arm over DDS: with every fault of the server the arm holds, and then goes on."""

import array
import contextlib

import numpy as np
import yaml
from sensor_msgs.msg import Image
from std_msgs.msg import String

from src.vla_model.test.policy_servers import Faulty, Served
from vla_model.remote.numpy_msgpack import pack
from vla_msgs.msg import ExecutorStatus, PolicyStatus

from .test_executor_process import LATCHED, PROFILE, UNMONITORED, Robot

MAPPING = {
    'name': 'ramp', 'dt': 0.1, 'steps': 6, 'joints': {'count': 7, 'rest': PROFILE.home.tolist()},
    'cameras': [{'camera': 'front', 'key': 'image', 'size': [32, 32]}],
    'state': [{'key': 'state', 'parts': [{'part': 'joints'}]}],
    'actions': {'space': 'joint_position'},
}  # fmt: skip
SPEED = 0.1  # [rad/s]


class Ramp(Faulty):
    """Moves the first joint slowly."""

    async def _reply(self, connection, request):
        if self.fault in ('', 'slow'):
            self.requests.append(request)
            steps = np.tile(request['state'], (6, 1))
            steps[:, 0] += SPEED * 0.1 * np.arange(1, 7)
            await connection.send(pack({'actions': steps}))
        else:
            await super()._reply(connection, request)


def test_the_arm_holds_while_its_server_fails_and_goes_on_in_a_new_epoch(graph, tmp_path):
    ramp = Ramp()
    server = Served(ramp.start)
    mapping = tmp_path / 'ramp.yaml'
    mapping.write_text(yaml.safe_dump(MAPPING))
    reference = f'{server.url}?mapping={mapping}&deadline=0.4'
    arm = {'robot.gripper_joint_names': "['']"}
    graph.start('vla_policy_node', 'executor_node', params=UNMONITORED | arm)
    graph.start(
        'vla_policy_node', 'policy_node',
        params=arm | {
            'model': reference, 'drive': 'true', 'rate': 5.0,
            'cameras': '[front]', 'camera_topics': '[front/image_raw]',
        },
    )  # fmt: skip
    robot = Robot(graph)
    images = graph.node.create_publisher(Image, 'front/image_raw', 5)

    def publish_image():
        image = Image(width=32, height=32, encoding='rgb8', step=96, data=array.array('B', bytes(32 * 96)))
        image.header.stamp = graph.node.get_clock().now().to_msg()
        images.publish(image)

    graph.node.create_timer(0.03, publish_image)
    robot.ready()
    graph.bring_up('policy')
    statuses = graph.latest(PolicyStatus, 'policy/status')
    graph.node.create_publisher(String, 'policy/instruction', LATCHED).publish(String(data='turn'))
    robot.until(lambda s: s.state == ExecutorStatus.STATE_EXECUTING, 'executing')
    for fault, reason in (
        ('hangs', 'did not reply within 0.40 s'),
        ('nan', 'actions with NaN or infinity'),
        ('gone', 'cannot be reached'),
    ):
        before = robot.status.epoch
        ramp.fault = fault
        if fault == 'gone':
            server.close()
        graph.wait(
            lambda reason=reason: statuses and reason in statuses[-1].message, what=f'{fault}: a status with the reason'
        )
        assert statuses[-1].code == PolicyStatus.INFERENCE_FAILED
        robot.until(lambda s: s.state == s.STATE_HOLDING, f'{fault}: the arm holds')
        assert robot.status.hold_reason == ExecutorStatus.HOLD_CHUNKS_STOPPED
        graph.wait(lambda: list(robot.targets[-1].velocity) == [0.0] * 7, what=f'{fault}: standstill')
        ramp.fault = ''
        if fault == 'gone':
            server = Served(ramp.start, server.port)
        start = robot.targets[-1].position[0]
        robot.until(lambda s: s.state == ExecutorStatus.STATE_EXECUTING, f'{fault}: the arm goes on')
        graph.wait(lambda start=start: robot.targets[-1].position[0] > start + 0.01, what=f'{fault}: motion')
        assert robot.status.epoch > before
    with contextlib.suppress(TimeoutError):
        server.close()
