"""What a policy is asked, and when: streams as of one time, what is under way, what was imagined. No ROS, no torch."""
