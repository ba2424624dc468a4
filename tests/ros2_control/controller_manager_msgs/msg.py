"""Messages. The executor does not read what is in this one: it asks for the states."""

from std_msgs.msg import String as ControllerManagerActivity  # noqa: F401
