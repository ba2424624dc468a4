"""The client of policy servers: what it sends, what it takes, and that no fault of a server becomes a set-point."""

import socket
from dataclasses import replace

import numpy as np
import pytest
import yaml

from vla_model.loading import LoadOptions, describe, load
from vla_model.policy import PLAN
from vla_model.remote import openpi
from vla_model.remote.numpy_msgpack import pack, unpack
from vla_model.types import Chunk, Observation

from .policy_servers import MAPPING, Faulty, Hold, Served, until


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """The waits for a connection, and between two, are short."""
    monkeypatch.setattr(openpi, 'CONNECT', 1.0)
    monkeypatch.setattr(openpi, '_BACK_OFF', (0.02, 0.05))
    monkeypatch.delenv(openpi.KEY, raising=False)


@pytest.fixture
def faulty():
    return Faulty()


@pytest.fixture
def served(faulty):
    server = Served(faulty.start)
    yield server
    server.close()


@pytest.fixture
def mapping(tmp_path):
    path = tmp_path / 'mapping.yaml'
    path.write_text(yaml.safe_dump(MAPPING))
    return path


@pytest.fixture
def client(served, mapping):
    policy = load(f'{served.url}?mapping={mapping}&deadline=20')
    policy.warm_up()
    yield policy
    policy.close()


SEEN = Observation(
    7, {'front': np.zeros((40, 80, 3), np.uint8)}, np.array([0.3, -0.4]), np.zeros(2), 0.04, 'pick the cup'
)


def test_messages_have_the_bytes_of_openpi():
    """The example bytes of its format."""
    message = {'prompt': 'a', 'observation/gripper_position': np.array([0.5], np.float32)}
    expected = bytes.fromhex(
        '82a670726f6d7074a161bc6f62736572766174696f6e2f677269707065725f706f736974696f6e84c40b5f5f6e6461727261795f5fc3'
        'c40464617461c4040000003fc4056474797065a33c6634c405736861706591' '01'
    )  # fmt: skip
    assert pack(message) == expected
    assert unpack(expected)['observation/gripper_position'] == np.array([0.5])
    assert isinstance(unpack(pack({'x': np.float32(0.5)}))['x'], np.float32)
    with pytest.raises(ValueError, match='cannot be sent: arrays of object'):
        pack({'x': np.array([object()])})


def test_a_reply_becomes_the_chunk_of_the_mapping(client, faulty):
    chunk = client.act(SEEN).chunk
    assert (chunk.positions.shape, chunk.dt, chunk.space) == ((4, 2), 0.1, 'joints')
    np.testing.assert_allclose(chunk.positions, np.tile([0.3, -0.4], (4, 1)), rtol=1e-6)
    np.testing.assert_allclose(chunk.gripper, 0.04)
    request = faulty.requests[-1]
    assert request['prompt'] == 'pick the cup' and request['image'].shape == (8, 8, 3)
    np.testing.assert_allclose(request['state'], [0.3, -0.4, 0.5])
    assert client.info.model_id.startswith('test@127.0.0.1:') and client.info.trained
    with pytest.raises(ValueError, match="has no output 'plan'"):
        client.start(PLAN, SEEN)


@pytest.mark.parametrize(
    ('fault', 'message'),
    [
        ('text', "the policy server failed: KeyError: 'image'"),
        ('dies', 'closed the connection'),
        ('hangs', r'did not reply within 0.15 s'),
        ('late', r'did not reply within 0.15 s'),
        ('nan', 'actions with NaN or infinity: none of them is used'),
        ('too few steps', r'actions of shape \(3, 3\), mapping test needs \(4 or more, 3 or more\)'),
        ('too few numbers', r'actions of shape \(6, 2\)'),
        ('no actions', "no array of numbers 'actions', it sent: action"),
        ('actions are text', "no array of numbers 'actions'"),
        ('a list', 'sent a list, no dict with actions'),
        ('garbage', 'not msgpack'),
        ('objects', 'not msgpack with arrays'),
        ('lying shape', 'not msgpack with arrays'),
    ],
)
def test_no_fault_of_a_server_becomes_a_chunk_and_it_recovers_by_itself(client, faulty, fault, message):
    faulty.fault = fault
    client._deadline = 0.15 if fault in ('hangs', 'late') else 20
    with pytest.raises((RuntimeError, OSError), match=message):
        client.act(SEEN)
    faulty.fault, client._deadline = '', 20
    np.testing.assert_allclose(client.act(SEEN).chunk.positions[0], [0.3, -0.4], rtol=1e-6)


def test_a_reply_that_comes_late_answers_no_later_request(client, faulty, served):
    """The connection of the late reply is gone: requests have no numbers that would tell replies apart."""
    faulty.fault, before, client._deadline = 'late', faulty.connections, 0.15
    with pytest.raises(TimeoutError):
        client.act(SEEN)
    faulty.fault, client._deadline = '', 20
    for q in (0.1, 0.2, 0.3):
        chunk = client.act(replace(SEEN, positions=np.array([q, q]))).chunk
        np.testing.assert_allclose(chunk.positions, q, rtol=1e-6)  # the late reply has 0.9
    assert faulty.connections == before + 1


def test_a_server_that_stands_still_does_not_keep_a_large_request(client, faulty):
    """It reads nothing, so the buffers of the connection are full before the request is sent."""
    faulty.fault = 'stuck'
    client.link._socket.send(pack({'state': np.zeros(3)}))  # it stands still from here on
    until(lambda: len(faulty.requests) and faulty.requests[-1]['state'].sum() == 0)
    with pytest.raises(OSError, match=r'closed the connection|did not reply'):
        client.link.infer({'x': bytes(2**25)}, 0.2)
    assert not faulty.kept_waiting
    faulty.gate.set()


def test_a_frame_that_was_not_asked_for_ends_the_connection(client, faulty):
    faulty.fault = 'twice'
    client.act(SEEN)
    faulty.fault = ''
    until(lambda: _pending(client))
    with pytest.raises(RuntimeError, match='a frame that was not asked for'):
        client.act(SEEN)
    client.act(SEEN)


def _pending(client):
    return client.link._socket.recv_messages.frames.qsize() > 0


def test_a_server_that_is_started_again_is_used_again(client, faulty, served):
    client.act(SEEN)
    served.close()
    with pytest.raises(ConnectionError, match='closed the connection'):
        client.act(SEEN)
    with pytest.raises(ConnectionError, match=r'cannot be reached \(Connection refused\): start the policy server'):
        client.act(SEEN)
    with pytest.raises(ConnectionError, match='the next connection is tried in'):
        client.act(SEEN)
    again = Served(faulty.start, served.port)
    until(lambda: _acts(client))
    again.close()


def _acts(client):
    try:
        client.act(SEEN)
    except OSError:
        return False
    return True


def test_another_policy_on_the_same_port_is_refused_until_the_node_is_configured_again(client, faulty):
    faulty.fault, faulty.metadata = 'dies', {'robot': 'another'}
    with pytest.raises(ConnectionError):
        client.act(SEEN)
    faulty.fault = ''
    with pytest.raises(RuntimeError, match=r'has other metadata .* Configure the policy node again'):
        client.act(SEEN)


def test_the_warm_up_may_take_long(served, faulty, mapping):
    faulty.fault = 'late'
    policy = load(f'{served.url}?mapping={mapping}&deadline=0.1')
    policy.warm_up()
    with pytest.raises(TimeoutError):
        policy.act(SEEN)
    policy.close()


@pytest.mark.parametrize(
    ('fault', 'message'),
    [
        ('no metadata', 'is a websocket, but no policy server: no metadata within'),
        ('text first', 'refused the connection: RuntimeError: out of memory'),
        ('other protocol', "sent no metadata of openpi's format: correct the port"),
    ],
)
def test_what_is_no_policy_server_is_named_at_load(served, faulty, mapping, fault, message):
    faulty.fault = fault
    with pytest.raises(ValueError, match=message):
        load(f'{served.url}?mapping={mapping}')


def test_a_wrong_reference_is_one_error_with_a_remedy(served, mapping, monkeypatch):
    with socket.create_server(('127.0.0.1', 0)) as listener:  # it never replies
        silent = f'ws://127.0.0.1:{listener.getsockname()[1]}'
        for reference, message in (
            (silent, 'did not open within'),
            (f'{served.url}?mapping=nope', 'there is no mapping nope: give a file, or one of aloha, droid'),
            (f'{served.url}?maping=droid', "'maping' is not known after the"),
            (f'{served.url}?deadline=soon', 'deadline must be above 0'),
            (served.url, r'does not describe its keys and numbers: give ws://.*\?mapping=NAME, one of aloha, droid'),
            ('ws://', 'has no host'),
            ('ws://user:key@host', 'must not have a key'),
            ('ws://127.0.0.1:99999', 'Port out of range'),
        ):
            with pytest.raises((ValueError, FileNotFoundError), match=message):
                load(reference)
    with pytest.raises(ValueError, match='engine, kv_reuse cannot be set for the policy of a server'):
        load(f'{served.url}?mapping={mapping}', LoadOptions(engine='tensorrt', kv_reuse=2))


def test_the_key_comes_from_the_environment(mapping, monkeypatch):
    server = Served(lambda host, port: _server(Hold(), key='secret').start(host, port))
    with pytest.raises(ValueError, match='asks for a key: set VLA_SERVER_KEY'):
        load(server.url)
    monkeypatch.setenv(openpi.KEY, 'secret')
    load(server.url).close()
    server.close()


@pytest.mark.parametrize(
    ('metadata', 'message'),
    [
        (
            {'input_features': {'state': [3], 'wrist': [3, 8, 8]}},
            "the server needs 'wrist', which the mapping does not",
        ),
        ({'input_features': {'image': {'shape': [3, 224, 224]}}}, "'image' is of shape .3, 224, 224. at the server"),
        ({'chunk_size': 3}, 'the server sends 3 steps, the mapping uses 4'),
        ({'fps': 30}, 'trained at 30 steps per second, dt is 0.1 s'),
        ({'vla': {'version': 99}}, 'serves another version of this suite'),
    ],
)
def test_metadata_that_contradict_the_mapping_are_refused(served, faulty, mapping, metadata, message):
    faulty.metadata = metadata
    with pytest.raises(ValueError, match=message):
        load(f'{served.url}?mapping={mapping}')


# ---- a server of this suite


def _server(policy, **options):
    from vla_model.remote.serve import PolicyServer

    return PolicyServer(policy, **options)


@pytest.fixture
def hold():
    return Hold()


@pytest.fixture
def ours(hold):
    server = Served(lambda host, port: _server(hold).start(host, port))
    yield server
    hold.gate.set()
    server.close()


def test_a_server_of_this_suite_needs_no_mapping_and_sends_the_same_chunk(ours, hold):
    info = describe(ours.url)
    policy = load(ours.url)
    assert policy.info == info and replace(info, action_dim=0) == hold.info
    seen = replace(SEEN, images={'front': np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)})
    prefix = Chunk(np.array([[0.31, -0.41]]), np.array([0.041]), 0.1)
    chunk = policy.act(seen, prefix).chunk
    here = hold.act(seen).chunk
    assert np.array_equal(chunk.positions, here.positions) and np.array_equal(chunk.gripper, here.gripper)
    assert chunk.frozen == 1
    (got, got_prefix), _ = hold.seen
    assert np.array_equal(got.images['front'], seen.images['front'])
    assert np.array_equal(got_prefix.positions, prefix.positions) and np.array_equal(got_prefix.gripper, prefix.gripper)
    policy.close()


def test_health_is_answered_while_the_model_thinks(ours, hold):
    import threading
    import urllib.request

    policy = load(ours.url)
    hold.gate.clear()
    thread = threading.Thread(target=policy.act, args=(SEEN,))
    thread.start()
    until(lambda: hold.seen)
    with urllib.request.urlopen(ours.url.replace('ws', 'http') + '/healthz', timeout=10) as answer:
        assert answer.read() == b'OK\n'
    hold.gate.set()
    thread.join()
    policy.close()


def test_one_client_at_a_time_and_the_next_one_prepares_the_policy_anew(ours, hold):
    first = load(ours.url)
    first.act(SEEN)
    first.prepare(SEEN.instruction)
    assert hold.prepared == ['pick the cup']
    with pytest.raises(ValueError, match='1 clients are connected already'):
        load(ours.url)
    first.close()
    second = load(ours.url)
    second.prepare(SEEN.instruction)
    second.act(SEEN)
    assert hold.prepared == ['pick the cup'] * 2
    with pytest.raises(RuntimeError, match='prepare must be an instruction of 1 to 1000 characters'):
        second.prepare('x' * 1001)
    second.close()


@pytest.mark.parametrize(
    ('spoil', 'message'),
    [
        ({'prompt': ''}, 'prompt must be an instruction'),
        ({'observation/joint_position': np.zeros(3)}, 'observation/joint_position must be 2 finite numbers'),
        ({'observation/joint_position': np.array([np.nan, 0])}, 'observation/joint_position must be 2 finite numbers'),
        ({'observation/images/front': np.zeros((8, 8), np.uint8)}, "image of camera 'front' must be"),
        ({'observation/images/front': 'x'}, 'observation/images/front must be an array'),
        ({'observation/gripper_position': None}, 'observation/gripper_position must be 1 finite numbers'),
        ({'prompt': 'fail'}, 'ValueError: no such object'),
    ],
)
def test_a_wrong_request_is_one_text_frame(ours, spoil, message):
    policy = load(ours.url)
    request = {
        'prompt': 'go', 'observation/images/front': np.zeros((64, 64, 3), np.uint8),
        'observation/joint_position': np.zeros(2), 'observation/gripper_position': np.zeros(1),
    }  # fmt: skip
    with pytest.raises(RuntimeError, match=message):
        policy.link.infer(request | spoil, 5.0)
    assert policy.link.infer(request, 5.0)['actions'].shape == (4, 3)
    policy.close()


def test_a_request_that_is_too_large_is_refused(ours, monkeypatch):
    policy = load(ours.url)
    with pytest.raises(OSError, match='closed the connection'):
        policy.link.infer({'x': bytes(2**25 + 1)}, 5.0)
    policy.act(SEEN)
    policy.close()


def test_other_machines_are_served_with_a_key_only():
    from vla_model.remote.serve import check_address

    for host in ('0.0.0.0', '192.168.1.5', '::', 'robot.local'):
        with pytest.raises(ValueError, match='set the environment variable VLA_SERVER_KEY'):
            check_address(host, '')
        check_address(host, 'secret')
    for host in ('127.0.0.1', '::1', 'localhost'):
        check_address(host, '')
