"""The doctor on a policy server: what fits and what does not."""

import pytest
import yaml

from src.vla_model.test.policy_servers import MAPPING, Faulty, Served
from vla_bringup.doctor.check import Verdict
from vla_bringup.doctor.checkpoint import check_checkpoint
from vla_bringup.doctor.engines import check_engines
from vla_model.remote import openpi

OK, WARN, FAIL, SKIP = Verdict.OK, Verdict.WARN, Verdict.FAIL, Verdict.SKIP


@pytest.fixture
def faulty():
    return Faulty()


@pytest.fixture
def model(faulty, tmp_path):
    server = Served(faulty.start)
    (tmp_path / 'mapping.yaml').write_text(yaml.safe_dump(MAPPING))
    yield f'{server.url}?mapping={tmp_path / "mapping.yaml"}'
    server.close()


def test_a_server_that_replies_is_read_through(model):
    found = {c.name: c for c in check_checkpoint(model)}
    assert found['fits the robot'].verdict is SKIP and 'PROFILE' in found['fits the robot'].remedy
    assert {name for name, c in found.items() if c.verdict is OK} == {
        'server', 'mapping', 'reply', 'time of a reply', 'first step',
    }  # fmt: skip
    assert found['mapping'].fact == 'cameras front; 2 joints and a gripper; 4 steps of 0.1 s, joint_position'
    (engines,) = check_engines(model)
    assert engines.verdict is SKIP


def test_what_does_not_fit_the_robot_is_all_named(model):
    found = [c for c in check_checkpoint(model, 'sim_panda') if c.verdict is FAIL]
    assert [c.name for c in found] == ['fits the robot'] and 'is for 2 joints' in found[0].fact


def test_a_reply_that_cannot_be_used_and_a_server_that_is_not_there_fail(model, faulty, monkeypatch):
    faulty.fault = 'nan'
    last = list(check_checkpoint(model))[-1]
    assert last.verdict is FAIL and 'NaN' in last.fact and last.remedy
    monkeypatch.setattr(openpi, 'CONNECT', 0.2)
    faulty.fault = 'no metadata'
    (only,) = check_checkpoint(model)
    assert only.verdict is FAIL and 'no metadata' in only.fact + only.remedy
