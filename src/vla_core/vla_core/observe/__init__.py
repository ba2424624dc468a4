"""Streams of sensor data by time, and what follows from them. No ROS, no torch."""
