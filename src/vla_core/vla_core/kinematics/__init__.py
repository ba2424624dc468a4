"""Kinematics of an arm from its description, and the collision monitor. No ROS, no torch."""
