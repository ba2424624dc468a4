"""Evaluation of policies: closed loop in the simulator, single steps, recorded frames."""
