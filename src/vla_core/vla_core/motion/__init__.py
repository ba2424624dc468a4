"""Action chunks to set-points: timeline, blending, retiming, limits, braking. No ROS, no torch."""
