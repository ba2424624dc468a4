"""Messages."""

from std_msgs.msg import UInt8 as FrankaRobotState

FrankaRobotState.robot_mode = property(lambda message: message.data)
