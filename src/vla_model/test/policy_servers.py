"""A policy server in a thread of the test, whose replies go wrong as the test wants."""

import asyncio
import threading
import time

import numpy as np
from websockets.asyncio.server import serve

from vla_model.policy import PolicyInfo, Prediction, no_output
from vla_model.remote.numpy_msgpack import pack, unpack
from vla_model.types import Chunk, Observation

MAPPING = {
    'name': 'test', 'dt': 0.1, 'steps': 4, 'joints': {'count': 2}, 'gripper': {'open': 0.08},
    'cameras': [{'camera': 'front', 'key': 'image', 'size': [8, 8]}],
    'state': [{'key': 'state', 'parts': [{'part': 'joints'}, {'part': 'gripper'}]}],
    'actions': {'space': 'joint_position', 'gripper': {'column': 2}},
}  # fmt: skip


class Hold:
    """A policy that holds the arm; `gate` closed: it thinks on."""

    info = PolicyInfo('hold-1', True, ('front',), 2, 4, 0.1, gripper=True, name='hold', takes_prefix=True)

    def __init__(self):
        self.gate, self.seen, self.prepared = threading.Event(), [], []
        self.gate.set()

    def prepare(self, instruction):
        self.prepared.append(instruction)

    def act(self, observation, prefix=None):
        self.seen.append((observation, prefix))
        assert self.gate.wait(20)
        if observation.instruction == 'fail':
            raise ValueError('no such object')
        chunk = Chunk(np.tile(observation.positions, (4, 1)), np.full(4, observation.gripper), 0.1)
        return Prediction(chunk)

    def start(self, output, observation, options=None):
        raise no_output(self.info, output)

    def example(self, grey=128):
        return Observation(0, {'front': np.full((64, 64, 3), grey, np.uint8)}, np.zeros(2), np.zeros(2), 0.0, 'hold')

    warm_up = close = lambda self, *_: None


class Served:
    """A coroutine `start(host, port)` of a server, run in the loop of a thread."""

    def __init__(self, start, port=0):
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.running = asyncio.run_coroutine_threadsafe(start('127.0.0.1', port), self.loop).result(20)
        self.port = next(iter(self.running.sockets)).getsockname()[1]
        self.url = f'ws://127.0.0.1:{self.port}'

    def close(self):
        async def end():
            self.running.close()
            await self.running.wait_closed()

        if self.thread.is_alive():
            asyncio.run_coroutine_threadsafe(end(), self.loop).result(20)
            self.loop.call_soon_threadsafe(self.loop.stop)
            self.thread.join(20)


class Faulty:
    """The handler of a server that replies with the state it was sent, spoilt by `fault`."""

    def __init__(self):
        self.fault, self.metadata, self.requests, self.connections = '', {'robot': 'test'}, [], 0
        self.kept_waiting = False
        self.gate = threading.Event()  # a server that is 'stuck' stands still until it is set

    async def start(self, host, port):
        return await serve(self._handle, host, port, compression=None, max_size=None)

    async def _handle(self, connection):
        self.connections += 1
        if self.fault == 'no metadata':
            await connection.wait_closed()
        if self.fault == 'text first':
            await connection.send('Traceback:\nRuntimeError: out of memory')
        await connection.send(pack(self.metadata) if self.fault != 'other protocol' else b'\x00hello')
        async for message in connection:
            await self._reply(connection, unpack(message))

    async def _reply(self, connection, request):
        self.requests.append(request)
        reply = {'actions': np.tile(request['state'], (6, 1)), 'server_timing': {'infer_ms': 2.0}}
        if self.fault == 'dies':
            connection.transport.abort()
        elif self.fault == 'text':
            await connection.send('Traceback (most recent call last):\n  File "x.py"\nKeyError: \'image\'\n')
            await connection.close(1011)
        elif self.fault == 'stuck':
            self.kept_waiting |= not self.gate.wait(5)
        elif self.fault == 'hangs':
            await connection.wait_closed()
        elif self.fault == 'late':
            await asyncio.sleep(0.3)
            await connection.send(pack({'actions': np.full((6, 3), 0.9)}))
        elif self.fault == 'twice':
            for _ in range(2):
                await connection.send(pack(reply))
        else:
            await connection.send(
                {
                    'nan': lambda: pack({'actions': reply['actions'] * np.nan}),
                    'too few steps': lambda: pack({'actions': reply['actions'][:3]}),
                    'too few numbers': lambda: pack({'actions': reply['actions'][:, :2]}),
                    'no actions': lambda: pack({'action': reply['actions']}),
                    'actions are text': lambda: pack({'actions': 'forward'}),
                    'a list': lambda: pack([1, 2]),
                    'garbage': lambda: b'\xc1\x00',
                    'objects': lambda: pack(
                        {'actions': {b'__ndarray__': True, b'data': b'', b'dtype': '|O', b'shape': [1]}}
                    ),
                    'lying shape': lambda: pack(
                        {'actions': {b'__ndarray__': True, b'data': b'12', b'dtype': '<f8', b'shape': [6, 3]}}
                    ),
                }.get(self.fault, lambda: pack(reply))()
            )


def until(condition, seconds=20.0):
    """Wait for a condition."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, 'the condition did not come true'
        time.sleep(0.005)
