"""Where links and tool are: guard against collisions, inverse kinematics, robot descriptions. No ROS, no torch."""
