"""The two robot-side nodes, policy and executor, and the ROS-free core they stand on."""
