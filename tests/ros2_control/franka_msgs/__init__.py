"""Stand-in for franka_msgs 3.4.0: what the executor uses of it."""
