"""How a network is run: eager, CUDA graphs, OpenVINO, TensorRT; their trials and the choice among them."""
