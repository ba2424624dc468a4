"""What moves the arm: from a chunk to the next set-point. No ROS, no torch: it can be tested with numpy alone."""
