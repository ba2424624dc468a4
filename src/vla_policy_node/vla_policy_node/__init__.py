"""The two robot-side nodes, policy and executor, with adapters to controllers and the ROS helpers of the suite."""
