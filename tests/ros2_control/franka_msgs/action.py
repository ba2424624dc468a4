"""Actions. ErrorRecovery has no fields that anybody reads."""

from vla_msgs.action import ExecuteInstruction as ErrorRecovery  # noqa: F401
