"""Evaluates policies: in closed loop in the simulator, on single steps, and on recorded frames."""
