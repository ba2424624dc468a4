"""A Franka Panda in MuJoCo that looks to ROS 2 like the real robot, with tasks and a scripted expert."""
