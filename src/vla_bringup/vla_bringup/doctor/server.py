"""Checks of a policy server: connection, mapping, robot, the first reply, and the time of a reply."""

import statistics
import time
from collections.abc import Iterator

import numpy as np

from vla_bringup.doctor.check import Check, fail, skip, warn
from vla_core.profile import RobotProfile, profile_parameters
from vla_model.loading import load
from vla_model.policy import Policy

CALLS = 10  # requests for the time of a reply
NEAR = 0.5  # [rad], [m] largest first step from the pose of the observation that is plausible


def check_server(model: str, robot: str = '') -> Iterator[Check]:
    """Yield the checks of the server at a URL, as `loading.load` takes it. robot: profile, name or file; may be empty.

    They send requests of a grey scene, and move nothing.
    """
    try:
        policy = load(model)
    except (OSError, ValueError) as error:
        fact, _, remedy = str(error).rpartition(': ')
        yield fail('server', fact or remedy, remedy if fact else 'correct the URL, or the mapping')
        return
    try:
        info = policy.info
        yield Check('server', f'{info.model_id} replies')
        inputs = f'cameras {", ".join(info.cameras)}; {info.dof} joints{" and a gripper" if info.gripper else ""}; '
        yield Check('mapping', f'{inputs}{info.horizon} steps of {info.dt:g} s, {info.action_space}')
        yield from _robot(policy, model, robot)
        yield from _replies(policy)
    finally:
        policy.close()


def _robot(policy: Policy, model: str, robot: str) -> Iterator[Check]:
    from vla_policy_node.policy.adapt_to_robot import misfits

    if not robot:
        yield skip('fits the robot', 'no robot profile was given', './vla doctor --model URL --robot PROFILE')
        return
    profile, cameras = RobotProfile.load(robot), profile_parameters(robot).get('cameras', ())
    found = list(misfits(policy.info, profile, cameras, model))
    for misfit in found:
        yield fail('fits the robot', misfit, 'correct the mapping, or the robot profile')
    if not found:
        yield Check('fits the robot', f'{profile.name}: cameras, joints and gripper')


def _replies(policy: Policy) -> Iterator[Check]:
    """Yield the checks of replies to a grey scene with the arm at rest."""
    info, seen = policy.info, policy.example()
    begun = time.perf_counter()
    try:
        policy.warm_up()
        first = time.perf_counter() - begun
        chunk, times = policy.act(seen).chunk, []
        for _ in range(CALLS):
            begun = time.perf_counter()
            policy.act(seen)
            times.append(time.perf_counter() - begun)
    except (OSError, RuntimeError, ValueError) as error:
        yield fail('reply', str(error), 'correct the mapping, or see the log of the server')
        return
    yield Check('reply', f'{len(chunk.positions)} finite steps; warmed up after {first:.1f} s')
    middle, longest = statistics.median(times), max(times)
    fact = f'{1e3 * middle:.0f} ms, at most {1e3 * longest:.0f} ms; a chunk lasts {info.horizon * info.dt:.2f} s'
    if longest > info.horizon * info.dt / 2:
        yield warn('time of a reply', fact, 'the arm will brake between chunks: a faster server, or more steps')
    else:
        yield Check('time of a reply', fact)
    if info.joints:
        step = float(np.abs(chunk.positions[0] - seen.positions).max())
        fact = f'at most {step:.2f} rad from the pose that was sent'
        if step > NEAR:
            yield warn('first step', fact, 'check unit, sign, zero and order of the joints, and joints.rest')
        else:
            yield Check('first step', fact)
