"""Instructions from the topic and from goals: bad ones are refused, good ones are put in force. No ROS node."""

from typing import Any

from vla_policy_node.policy.report import PolicyReport
from vla_policy_node.policy.session import Session


class Instructions:
    """The one door for instructions. Everything here runs in the spin thread.

    longest: the most characters of an instruction. leaving: the node shuts down and takes no more instructions.
    """

    def __init__(self, session: Session, report: PolicyReport, log: Any) -> None:
        """log: has info(text) and error(text)."""
        self._session, self._report, self._log = session, report, log
        self._standing = ''  # received while not active
        self.longest = 0
        self.leaving = False

    def refusal(self, instruction: str) -> str:
        """Why the instruction cannot be taken now, one sentence; '' when it can. The status shows a bad one."""
        if self.leaving or not self._session.active:
            return 'the policy node is not active: configure and activate it'
        if bad := self._bad(instruction):
            self._report.refuse(bad)
        return bad

    def receive(self, instruction: str) -> None:
        """Take an instruction of the topic: at once, or once the node is activated."""
        if self.leaving:
            return
        if bad := self._bad(instruction):
            self._log.error(f'~/instruction refused: {bad}')
            self._report.refuse(bad)
        elif self._session.active:
            self.take(instruction)
        else:
            self._standing = instruction

    def take(self, instruction: str) -> str:
        """Put an instruction that was not refused in force. Returns it as it is in force.

        The same words again change nothing, but with instruction_change supersede.
        """
        text = instruction.strip()
        self._report.accept()
        if self._session.put(text):
            self._log.info(f'instruction: "{text}"')
            self._report.publish()
        return text

    def activate(self) -> None:
        """Take the newest instruction from before the activation, if there was one."""
        if self._standing:
            self.take(self._standing)

    def clear(self) -> None:
        """Forget the instruction from before the activation."""
        self._standing = ''

    def _bad(self, instruction: str) -> str:
        text = instruction.strip()
        if not text:
            return 'the instruction is empty: say what the robot shall do'
        if len(text) > self.longest:
            return f'the instruction has {len(text)} characters, instruction_max_length is {self.longest}: shorten it'
        return ''
