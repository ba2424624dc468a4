"""Programs beside the suite that the nodes work with: franka_ros2, ros2_control, MoveIt."""
