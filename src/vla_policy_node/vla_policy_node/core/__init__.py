"""What the nodes stand on. No ROS, no torch: everything here can be tested with numpy alone."""
