"""Smaller weights: int8, int4 and fp8, calibration, and the gate that a quantized model must pass."""
