"""The client of `/act` servers against a server in a thread, whose replies go wrong as the test wants."""

import base64
import json
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from vla_model.loading import load


def row(values):
    """A row of numbers as json-numpy has it."""
    data = base64.b64encode(np.array(values, np.float64)).decode()
    return {'__numpy__': data, 'dtype': '<f8', 'shape': [len(values)]}


@pytest.fixture
def server():
    """An OFT server with `fault` and the newest `request`."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            server.request = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
            server.path = self.path
            if server.fault == 'late':
                server.release.wait(10)
            steps = [row([0.1, 0, 0, 0, 0, 0, 1.0])] * 8
            reply = {
                'error': 'error', 'nan': [row([np.nan] * 7)] * 8, 'short': steps[:3], 'garbage': {'actions': 1},
                'double': json.dumps(steps), 'ragged': [row([1.0]), row([1.0, 2.0])],
            }.get(server.fault, steps)  # fmt: skip
            self.send_response(500 if server.fault == 'status' else 200)
            self.end_headers()
            self.wfile.write(json.dumps(reply).encode())

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    server.fault, server.release = '', threading.Event()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.release.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def client(server):
    policy = load(f'act://127.0.0.1:{server.server_port}?mapping=oft_libero&deadline=20')
    policy.warm_up()
    return policy


def test_an_oft_server_drives_the_tool(client, server):
    chunk = client.act(client.example()).chunk
    np.testing.assert_allclose(chunk.positions, np.tile([0.005, 0, 0, 0, 0, 0], (8, 1)))
    assert chunk.space == 'tool' and (chunk.gripper == 0.08).all() and server.path == '/act'
    image = server.request['full_image']
    assert image['dtype'] == '|u1' and image['shape'] == [224, 224, 3]
    assert len(base64.b64decode(image['__numpy__'])) == 224 * 224 * 3
    assert server.request['state']['shape'] == [8] and server.request['instruction'] == 'warm up'
    server.fault = 'double'
    assert np.array_equal(client.act(client.example()).chunk.positions, chunk.positions)


@pytest.mark.parametrize(
    ('fault', 'message'),
    [
        ('late', 'did not reply within 0.20 s'),
        ('error', 'the policy server failed: error; the reason is in its log'),
        ('status', 'failed with HTTP 500'),
        ('nan', 'NaN or infinity'),
        ('short', r'actions of shape \(3, 7\)'),
        ('garbage', 'the policy server failed: '),
        ('ragged', 'sent no actions as json-numpy has them'),
    ],
)
def test_no_fault_of_an_act_server_becomes_a_chunk(client, server, fault, message):
    server.fault = fault
    client._deadline = 0.2 if fault == 'late' else 20
    with pytest.raises((RuntimeError, OSError), match=message):
        client.act(client.example())
    server.fault, client._deadline = '', 20
    server.release.set()
    client.act(replace(client.example(), instruction='go on'))


def test_an_act_server_that_is_not_there_is_named():
    with pytest.raises(ValueError, match=r'act://127.0.0.1:9 cannot be reached'):
        load('act://127.0.0.1:9?mapping=oft_libero')
