"""The lines of text that stand beside the robot."""

import math

from vla_core.motion.states import Hold, State
from vla_model.tokens.prompt_texts import progress
from vla_msgs.msg import ExecutorStatus, PolicyStatus
from vla_policy_node.policy.inference_report import CODE_NAMES
from vla_policy_node.show.pictures import wrapped

SCREEN, SCENE = 60, 36  # characters of a line: on the screen; beside the robot, where a line must not reach the arm
SILENT = 3.0  # [s] of wall time; the policy reports once a second, the executor ten times
STATES = {
    PolicyStatus.STATE_INACTIVE: 'inactive',
    PolicyStatus.STATE_IDLE: 'idle',
    PolicyStatus.STATE_WAITING: 'waiting',
    PolicyStatus.STATE_RUNNING: 'running',
}


def words(
    policy: PolicyStatus | None,
    plan: str,
    executor: ExecutorStatus | None,
    width: int,
    ages: tuple[float, float] = (0.0, 0.0),
) -> str:
    """Instruction, plan, progress, what policy and executor do and why not, latency and surprise.

    In lines of at most `width` characters. None: no message of that node was received.
    ages: of the two statuses [s]; an old one is marked, since its node may have died.
    """
    lines = []
    if policy is None:
        lines.append('policy: not heard')
    else:
        if policy.instruction:
            lines.append(f'"{policy.instruction}"')
        if plan:
            lines.append(plan)
            if not math.isnan(done := progress(plan)):
                lines.append(f'progress {done:.0%}')
        code = '' if policy.code == PolicyStatus.OK else f', {CODE_NAMES[policy.code]}: {policy.message}'
        how = 'drives' if policy.drive else 'in shadow'
        lines.append(f'policy {_silence(ages[0])}{STATES.get(policy.state, policy.state)}, {how}{code}')
        numbers = []
        if policy.chunks and not math.isnan(policy.latency):
            numbers.append(f'latency {1e3 * policy.latency:.0f} ms')
        if not math.isnan(policy.surprise):
            numbers.append(f'surprise {policy.surprise:.2f}')
        if numbers:
            lines.append(', '.join(numbers))
    if executor is None:
        lines.append('executor: not heard')
    else:
        held = '' if executor.hold_reason == Hold.NONE else f', {Hold(executor.hold_reason).name}'
        why = f': {executor.message}' if executor.message else ''
        lines.append(f'executor {_silence(ages[1])}{State(executor.state).name.lower()}{held}{why}')
    return '\n'.join(wrapped(line, width) for line in lines)


def _silence(age: float) -> str:
    return f'SILENT for {age:.0f} s, before that ' if age > SILENT else ''
