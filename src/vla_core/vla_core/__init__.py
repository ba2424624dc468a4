"""The ROS-free core of the robot side: motion within limits, observations by time, kinematics. No ROS, no torch."""
