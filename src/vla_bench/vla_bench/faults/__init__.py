"""Faults in mid-motion: a part of the running system fails, and the motion of the arm is measured."""
