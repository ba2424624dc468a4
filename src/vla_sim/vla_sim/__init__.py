"""A Franka Panda in MuJoCo with the ROS 2 interface of the real robot, tasks and a scripted expert."""
