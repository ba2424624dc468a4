"""Verdicts of the doctor: on this machine, and on files, programs and settings of other machines."""

import json
import os
import resource
import time
from pathlib import Path

import pytest

from vla_bringup.doctor import doctor
from vla_bringup.doctor import gpu as doctor_gpu
from vla_bringup.doctor import machine as doctor_machine
from vla_bringup.doctor import network as doctor_network
from vla_bringup.doctor.check import Check, Verdict, bounded, fail, output_of, warn
from vla_bringup.doctor.checkpoint import check_checkpoint
from vla_bringup.doctor.engines import check_engines
from vla_model.engines import choice, trial
from vla_model.engines.trial import Candidate
from vla_model.engines.trial import Verdict as Trial

OK, WARN, FAIL, SKIP = Verdict.OK, Verdict.WARN, Verdict.FAIL, Verdict.SKIP


def verdicts(checks):
    return [c.verdict for c in ([checks] if isinstance(checks, Check) else checks)]


def write(root, files):
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(content))
    return root


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Return put(name, script), which puts a shell script of that name first in the path."""

    def put(name, script):
        path = write(tmp_path / 'bin', {name: f'#!/bin/sh\n{script}\n'}) / name
        path.chmod(0o755)
        monkeypatch.setenv('PATH', f'{path.parent}:{os.environ["PATH"]}')

    return put


@pytest.mark.parametrize(
    ('settings', 'verdict', 'text'),
    [
        ({'ROS_DOMAIN_ID': 'x'}, FAIL, 'x'),
        ({'ROS_DOMAIN_ID': '233'}, FAIL, '233'),
        ({'ROS_DOMAIN_ID': '150'}, WARN, '150'),
        ({'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCAL'}, FAIL, 'LOCAL'),
        ({'ROS_AUTOMATIC_DISCOVERY_RANGE': 'OFF'}, WARN, 'do not find'),
        ({'ROS_LOCALHOST_ONLY': '1'}, WARN, 'ROS_LOCALHOST_ONLY'),
        ({'ROS_PYTHON_CHECK_FIELDS': '0'}, FAIL, 'garbage'),
    ],
)
def test_wrong_settings_are_found(monkeypatch, settings, verdict, text):
    for name in ('ROS_DOMAIN_ID', 'ROS_LOCALHOST_ONLY'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
    monkeypatch.setenv('ROS_PYTHON_CHECK_FIELDS', '1')
    assert set(verdicts(doctor_network.check_discovery())) == {OK}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    found = [c for c in doctor_network.check_discovery() if c.verdict is not OK]
    assert [c.verdict for c in found] == [verdict]
    assert text in found[0].fact
    assert found[0].remedy


@pytest.mark.parametrize(
    ('content', 'reach', 'verdict'),
    [
        (None, 'LOCALHOST', WARN),
        ('', 'LOCALHOST', FAIL),
        ('<dds/>', 'SUBNET', OK),
        ('<interfaceWhiteList/>', 'LOCALHOST', OK),
        ('<interfaceWhiteList/>', 'SUBNET', WARN),
    ],
)
def test_the_dds_profile_must_exist_and_fit_the_discovery_range(monkeypatch, tmp_path, content, reach, verdict):
    path = tmp_path / 'profile.xml'
    if content:
        path.write_text(content)
    monkeypatch.delenv('FASTDDS_DEFAULT_PROFILES_FILE', raising=False)
    monkeypatch.setenv('FASTRTPS_DEFAULT_PROFILES_FILE', '' if content is None else str(path))
    monkeypatch.setenv('ROS_AUTOMATIC_DISCOVERY_RANGE', reach)
    assert verdicts(doctor_network.check_rmw())[-1] is verdict


@pytest.mark.parametrize(
    ('reach', 'buffer', 'image', 'verdict'),
    [
        ('SUBNET', 4194304, 1000, OK),
        ('SUBNET', 4194304, 1280 * 720 * 3, WARN),  # two of these are more than the profile asks for
        ('SUBNET', 212992, 1000, WARN),  # the kernel's default cuts the profile's buffers
        ('LOCALHOST', 212992, 1000, OK),
        ('SUBNET', None, 1000, SKIP),
    ],
)
def test_socket_buffers_against_images_and_profile(monkeypatch, tmp_path, reach, buffer, image, verdict):
    write(tmp_path, {'p.xml': '<receiveBufferSize>4194304</receiveBufferSize>'})
    if buffer:
        write(tmp_path, {f'proc/sys/net/core/{name}': buffer for name in ('rmem_max', 'wmem_max')})
    monkeypatch.setenv('ROS_AUTOMATIC_DISCOVERY_RANGE', reach)
    monkeypatch.delenv('FASTDDS_DEFAULT_PROFILES_FILE', raising=False)
    monkeypatch.setenv('FASTRTPS_DEFAULT_PROFILES_FILE', str(tmp_path / 'p.xml'))
    checks = list(doctor_network.check_sockets(tmp_path, image))
    assert verdicts(checks) == [verdict] * 2
    assert all('sysctl -w' in c.remedy for c in checks if c.verdict is WARN)


def test_multicast_is_tried_unless_discovery_is_local(monkeypatch):
    monkeypatch.setenv('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
    assert doctor_network.check_multicast().verdict is SKIP
    monkeypatch.setenv('ROS_AUTOMATIC_DISCOVERY_RANGE', 'SUBNET')
    check = doctor_network.check_multicast(0.2)  # there may be no network but loopback where this runs
    assert (check.verdict, bool(check.remedy)) in ((OK, False), (FAIL, True))
    monkeypatch.setattr(doctor_network, 'GROUP', '192.0.2.1')  # no multicast group: the kernel refuses to join
    assert doctor_network.check_multicast(0.2).verdict is FAIL


def test_failed_rendering_is_reported_with_the_last_line_of_the_error(monkeypatch):
    monkeypatch.setattr(doctor_machine, 'RENDER', 'raise OSError("no EGL")')
    check = doctor_machine.check_rendering()
    assert check.verdict is FAIL
    assert 'no EGL' in check.fact
    assert 'libegl1' in check.remedy


def test_real_time_kernel_governor_and_limits(monkeypatch, tmp_path):
    write(tmp_path, {'sys/kernel/realtime': '1\n'})
    assert doctor_machine.check_kernel(tmp_path).verdict is OK
    assert doctor_machine.check_governor(tmp_path).verdict is SKIP
    folder = 'sys/devices/system/cpu/cpu{}/cpufreq/scaling_governor'
    write(tmp_path, {folder.format(i): g for i, g in enumerate(['performance', 'schedutil\n'])})
    check = doctor_machine.check_governor(tmp_path)
    assert check.verdict is WARN
    assert 'schedutil on 1 of 2' in check.fact
    limits = {resource.RLIMIT_RTPRIO: 99, resource.RLIMIT_MEMLOCK: resource.RLIM_INFINITY}
    monkeypatch.setattr(resource, 'getrlimit', lambda kind: (0, limits[kind]))
    assert verdicts(doctor_machine.check_limits()) == [OK, OK]
    limits.update({resource.RLIMIT_RTPRIO: 0, resource.RLIMIT_MEMLOCK: 8 << 20})
    assert verdicts(doctor_machine.check_limits()) == [WARN, WARN]


def test_a_gpu_that_torch_does_not_use_fails(program):
    program('nvidia-smi', 'echo "NVIDIA RTX 4090, 580.95, 24564, 300, 41, 450.00"')
    checks = list(doctor_gpu.check_gpu())
    assert checks[0].verdict is OK
    assert '300 of 24564 MiB' in checks[0].fact
    import torch

    assert checks[1].verdict is (OK if torch.cuda.is_available() else FAIL)


def test_a_hot_gpu_and_a_broken_driver(program):
    program('nvidia-smi', 'echo "Orin (nvgpu), 540.4.0, [N/A], [N/A], 91, [N/A]"')
    check = next(iter(doctor_gpu.check_gpu()))
    assert check.verdict is WARN
    assert 'shared with the system' in check.fact
    program('nvidia-smi', 'echo "Failed to initialize NVML: Driver/library version mismatch" >&2; exit 18')
    check = next(iter(doctor_gpu.check_gpu()))
    assert check.verdict is FAIL
    assert 'version mismatch' in check.fact


@pytest.mark.parametrize(
    ('code', 'verdict'),
    [('print("10.14.1.48")', OK), ('print("8.6.2")', FAIL), ('raise OSError("libnvinfer.so.10")', FAIL)],
)
def test_tensorrt(monkeypatch, code, verdict):
    monkeypatch.setattr(doctor_gpu, 'TENSORRT', code)
    assert doctor_gpu.check_tensorrt().verdict is verdict
    monkeypatch.setattr(doctor_gpu, 'TENSORRT', 'import tensorrt_that_does_not_exist')
    assert doctor_gpu.check_tensorrt().verdict is SKIP


JETSON = {
    'etc/nv_tegra_release': '# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n',
    'proc/device-tree/model': 'NVIDIA Jetson AGX Orin Developer Kit\0',
    'sys/devices/system/cpu/cpu0/cpufreq/scaling_min_freq': 2201600,
    'sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq': 2201600,
    'sys/class/devfreq/17000000.gpu/min_freq': 1300500000,
    'sys/class/devfreq/17000000.gpu/max_freq': 1300500000,
}


@pytest.mark.parametrize(
    ('files', 'mode', 'expected'),
    [
        ({}, 'MAXN', [OK, OK, OK]),
        ({'etc/nv_tegra_release': '# R35 (release), REVISION: 4.1, GCID: 1\n'}, 'MAXN_SUPER', [FAIL, OK, OK]),
        ({'sys/class/devfreq/17000000.gpu/min_freq': 306000000}, '30W', [OK, WARN, WARN]),
    ],
)
def test_jetson_release_power_mode_and_clocks(tmp_path, program, files, mode, expected):
    assert verdicts(doctor_gpu.check_jetson(tmp_path)) == [SKIP]
    write(tmp_path, JETSON | files)
    program('nvpmodel', f'echo "NV Power Mode: {mode}"; echo 0')
    checks = list(doctor_gpu.check_jetson(tmp_path))
    assert verdicts(checks) == expected
    assert 'AGX Orin' in checks[0].fact
    program('nvpmodel', 'echo "permission denied" >&2; exit 1')
    assert verdicts(doctor_gpu.check_jetson(tmp_path))[1] is SKIP


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    from vla_model.families.mmact import loading

    folder = tmp_path_factory.mktemp('checkpoint')
    loading.save(loading.load('random-nano'), folder)
    return folder


def test_a_checkpoint_is_read_through(checkpoint):
    found = {c.name: c for c in check_checkpoint(str(checkpoint))}
    wanted = {'checkpoint': OK, 'actions': OK, 'trained': WARN, 'statistics': OK, 'memory': OK, 'weights': OK}
    assert {n: c.verdict for n, c in found.items()} == {**wanted, 'evaluation': WARN}
    assert 'model id random-nano-' in found['weights'].fact


def test_a_checkpoint_larger_than_the_memory_fails(checkpoint, monkeypatch):
    from vla_model.checkpoints import memory

    monkeypatch.setattr(memory, 'available', lambda device: (1 << 20, 'a small machine'))
    found = {c.name: c for c in check_checkpoint(str(checkpoint))}
    assert found['memory'].verdict is FAIL
    assert '0.0 GiB free on a small machine' in found['memory'].fact


def test_evaluations_of_a_checkpoint_are_reported(checkpoint):
    record = checkpoint / 'evaluation-openvino.json'
    record.write_text(json.dumps({'summary': {'held-out': {'fill_bowl': {'success': 0.93}}}}))
    try:
        last = list(check_checkpoint(str(checkpoint)))[-1]
        assert (last.verdict, 'fill_bowl 93 %' in last.fact) == (OK, True)
        record.write_text('{}')
        assert list(check_checkpoint(str(checkpoint)))[-1].verdict is FAIL
    finally:
        record.unlink()


def test_a_folder_of_any_family_is_checked(tmp_path, monkeypatch):
    from vla_model import loading

    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / 'examples'))
    monkeypatch.setitem(loading.FAMILIES, 'hold', 'minimal_policy')
    (tmp_path / 'config.json').write_text(json.dumps({'family': 'hold'}))
    found = {check.name: check for check in check_checkpoint(str(tmp_path))}
    assert list(found) == ['checkpoint', 'actions', 'trained', 'weights', 'evaluation']
    assert found['actions'].fact == 'cameras front; 7 joints; 8 steps of 0.1 s, joint_position'
    assert 'model id hold-1' in found['weights'].fact


def test_a_damaged_checkpoint_fails(checkpoint):
    from vla_model.loading import load

    path = checkpoint / 'model.safetensors'
    whole = path.read_bytes()
    try:
        path.write_bytes(whole[:-100])
        assert verdicts(check_checkpoint(str(checkpoint)))[-1] is FAIL
        path.write_bytes(whole[:-4] + b'\x00\x00\xc0\x7f')  # the last number is NaN
        found = {c.name: c for c in check_checkpoint(str(checkpoint))}
        assert found['weights'].verdict is FAIL
        assert 'not finite' in found['weights'].fact
    finally:
        path.write_bytes(whole)
    pointers = checkpoint.parent / 'pointers'
    pointers.mkdir()
    for file in checkpoint.glob('*.json'):
        (pointers / file.name).write_bytes(file.read_bytes())
    (pointers / 'model.safetensors').write_text('version https://git-lfs.github.com/spec/v1\n')
    (line,) = check_checkpoint(str(pointers))
    with pytest.raises(ValueError, match='Git LFS pointer') as refused:  # the node and the replay load it so
        load(pointers)
    assert f'{line.fact}: {line.remedy}' == str(refused.value)
    assert verdicts(check_checkpoint(str(checkpoint / 'nowhere'))) == [FAIL]
    assert verdicts(check_checkpoint('random-nano')) == [WARN]


def test_a_probe_that_hangs_or_raises_is_one_failed_check():
    def hangs():
        yield Check('first', 'fine')
        time.sleep(60)

    found, ended = bounded('disk', hangs, 0.1)
    assert (verdicts(found), ended) == ([OK, FAIL], False)
    found, ended = bounded('driver', lambda: {}['x'], 5.0)
    assert (verdicts(found), ended) == ([FAIL], True)
    assert 'KeyError' in found[0].fact


def test_programs_that_are_not_installed_hang_or_fail(program):
    assert output_of(['no-such-program']) is None
    program('slow', 'sleep 60')
    with pytest.raises(RuntimeError, match='does not answer'):
        output_of(['slow'], 0.1)


def test_a_failed_check_gives_exit_code_1(monkeypatch, capsys):
    def probes(check):
        return lambda *_: (('part', (('a', lambda: check, 5.0), ('b', lambda: Check('b', 'fine [really]'), 5.0))),)

    monkeypatch.setattr(doctor, 'sections', probes(warn('a', 'odd', 'do this')))
    assert doctor.run_doctor()
    out = capsys.readouterr().out
    assert 'fine [really]' in out
    assert '1 ok, 1 warning' in out
    monkeypatch.setattr(doctor, 'sections', probes(fail('a', 'broken', 'do that')))
    assert not doctor.run_doctor()
    assert 'do that' in capsys.readouterr().out
    assert not doctor.run_doctor(as_json=True)
    report = json.loads(capsys.readouterr().out)
    assert report['good'] is False
    assert report['checks'][0] == {
        'section': 'part', 'name': 'a', 'fact': 'broken', 'verdict': 'fail', 'remedy': 'do that',
    }  # fmt: skip


def test_engines_are_listed_with_the_verdicts_of_their_trials(monkeypatch):
    half, image = Candidate('engine', 'openvino-bfloat16'), Candidate('image_engine', 'openvino', 'bfloat16')
    found = {
        half: Trial('died', 'was killed by SIGFPE'),
        image: Trial('passed', ms=4.0, share=0.4, error=0.01),
        Candidate('engine', 'openvino-int8'): Trial('refused', 'the graph in int8 differs from eager by 0.3'),
    }
    monkeypatch.setattr(trial, 'verdicts', lambda subject, candidates, again: found)
    monkeypatch.setattr(choice, 'choose', lambda *_: choice.Choice('eager', 'openvino', 'bfloat16'))
    bfloat16, int8, images, auto = check_engines('random-nano')
    assert (bfloat16.name, bfloat16.verdict, bfloat16.fact) == ('openvino-bfloat16', WARN, 'was killed by SIGFPE')
    assert './vla doctor --again' in bfloat16.remedy
    assert (int8.verdict, int8.fact) == (SKIP, 'the graph in int8 differs from eager by 0.3')
    assert images.fact == '4.0 ms, 2.5 times as fast as eager, codes 1.0 % off'
    assert auto.fact == 'engine eager, image_engine openvino in bfloat16'
    (gone,) = check_engines('/no/such/model')
    assert gone.verdict is SKIP and '/no/such/model' in gone.fact
