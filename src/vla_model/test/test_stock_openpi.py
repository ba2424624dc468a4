"""The stock client and server of openpi against those of this suite, bytes and images included.

It needs an environment of its own, as the steps of .github/workflows/openpi.yml make it. Where there is no
openpi_client it is skipped.
"""

import asyncio
import threading
from dataclasses import replace

import numpy as np
import pytest

stock = pytest.importorskip('openpi_client.websocket_client_policy', reason='openpi-client is not installed')
stock_server = pytest.importorskip('openpi_server', reason='openpi-server is not installed')
from openpi_client import image_tools, msgpack_numpy  # noqa: E402

from vla_model.loading import load  # noqa: E402
from vla_model.policy import PolicyInfo, Prediction, no_output  # noqa: E402
from vla_model.remote.mapping import load_mapping  # noqa: E402
from vla_model.remote.numpy_msgpack import pack, unpack  # noqa: E402
from vla_model.remote.pictures import letterbox  # noqa: E402
from vla_model.remote.serve import PolicyServer  # noqa: E402
from vla_model.types import Chunk, Observation  # noqa: E402

RNG = np.random.default_rng(0)
MESSAGE = {
    'prompt': 'fold the towel',
    'state': RNG.normal(size=14).astype(np.float32),
    'images': {'cam_high': RNG.integers(0, 256, (3, 8, 8), dtype=np.uint8)},
    'scalar': np.float32(0.5), 'list': [1, 2.5, None, True], 'empty': np.zeros((0, 3)),
}  # fmt: skip


def in_thread(start):
    """Run the coroutine that `start` returns in the loop of a thread, and return its result."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    return asyncio.run_coroutine_threadsafe(start(), loop).result(20)


def test_messages_are_equal_in_bytes_and_read_by_each_other():
    assert pack(MESSAGE) == msgpack_numpy.packb(MESSAGE)
    for back in (unpack(msgpack_numpy.packb(MESSAGE)), msgpack_numpy.unpackb(pack(MESSAGE))):
        assert back['images']['cam_high'].tobytes() == MESSAGE['images']['cam_high'].tobytes()
        assert back['state'].dtype == np.float32 and np.array_equal(back['state'], MESSAGE['state'])
        assert back['scalar'] == np.float32(0.5) and back['list'] == MESSAGE['list'] and back['empty'].shape == (0, 3)


@pytest.mark.parametrize('size', [(480, 640), (720, 1280), (256, 256), (101, 33), (37, 224), (224, 224), (1080, 1081)])
def test_images_are_resized_to_the_same_bits(size):
    image = RNG.integers(0, 256, (*size, 3), dtype=np.uint8)
    assert np.array_equal(letterbox(image, 224, 224), image_tools.resize_with_pad(image, 224, 224))


class Droid:
    """A policy with the inputs of openpi's DROID policies; it fails as the prompt tells it."""

    def __init__(self):
        self.seen = []

    def infer(self, obs):
        self.seen.append(obs)
        if obs['prompt'] == 'fail':
            raise KeyError('observation/wrist_image_left')
        return {'actions': np.full((10, 8), 0.1), 'policy_timing': {'infer_ms': 1.0}}


def test_the_client_drives_a_stock_server_and_recovers_from_its_errors():
    policy = Droid()
    server = stock_server.WebsocketPolicyServer(policy, host='127.0.0.1', port=0)

    async def start():
        from websockets.asyncio.server import serve

        return await serve(server._handler, '127.0.0.1', 0, compression=None, max_size=None)

    running = in_thread(start)
    client = load(f'ws://127.0.0.1:{running.sockets[0].getsockname()[1]}?mapping=droid')
    client.warm_up()
    image = RNG.integers(0, 256, (480, 640, 3), dtype=np.uint8)
    seen = replace(client.example(), images={'front': image, 'wrist': image}, gripper=0.08, instruction='pick')
    chunk = client.act(seen).chunk
    got = policy.seen[-1]
    assert np.array_equal(got['observation/exterior_image_1_left'], image_tools.resize_with_pad(image, 224, 224))
    assert got['observation/joint_position'].shape == (7,) and got['observation/gripper_position'] == [0.0]
    steps = np.arange(1, 9)[:, None] * 0.1 * 3.0 * load_mapping('droid').dt
    np.testing.assert_allclose(chunk.positions, seen.positions + steps)
    assert (chunk.gripper == 0.08).all()
    with pytest.raises(RuntimeError, match="the policy server failed: KeyError: 'observation/wrist_image_left'"):
        client.act(replace(seen, instruction='fail'))
    assert np.array_equal(client.act(seen).chunk.positions, chunk.positions)
    client.close()


class Hold:
    """Holds the arm, and closes the gripper by half."""

    info = PolicyInfo('hold-1', True, ('front',), 7, 8, 0.1, gripper=True)

    def act(self, observation, prefix=None):
        if observation.instruction == 'fail':
            raise ValueError('no such object')
        return Prediction(Chunk(np.tile(observation.positions, (8, 1)), np.full(8, observation.gripper / 2), 0.1))

    def start(self, output, observation, options=None):
        raise no_output(self.info, output)

    def example(self, grey=128):
        return Observation(0, {'front': np.full((96, 128, 3), grey, np.uint8)}, np.zeros(7), np.zeros(7), 0.0, 'hold')

    prepare = warm_up = close = lambda self, *_: None


def test_a_stock_client_drives_the_server_and_is_given_its_errors():
    running = in_thread(lambda: PolicyServer(Hold()).start('127.0.0.1', 0))
    port = running.sockets[0].getsockname()[1]
    client = stock.WebsocketClientPolicy('127.0.0.1', port)
    assert client.get_server_metadata()['vla']['info']['model_id'] == 'hold-1'
    request = {
        'observation/images/front': np.zeros((96, 128, 3), np.uint8),
        'observation/joint_position': np.arange(7, dtype=np.float32),
        'observation/gripper_position': np.array([0.08]),
        'prompt': 'hold',
    }
    reply = client.infer(request)
    assert np.array_equal(reply['actions'], np.tile([*range(7), 0.04], (8, 1)))
    assert reply['server_timing']['infer_ms'] >= 0
    with pytest.raises(RuntimeError, match='ValueError: no such object'):
        client.infer(request | {'prompt': 'fail'})
    client._ws.close()
    client = stock.WebsocketClientPolicy('127.0.0.1', port)
    with pytest.raises(RuntimeError, match='the request lacks observation/joint_position'):
        client.infer({k: v for k, v in request.items() if 'joint' not in k})
