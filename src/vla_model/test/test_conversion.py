"""A graph for OpenVINO keeps nothing of the module that it was made from."""

import gc
import weakref

import pytest
import torch

pytest.importorskip('openvino')
from vla_model.engines import openvino_graph as export


def test_nothing_of_a_converted_module_stays_in_the_process():
    inputs = (torch.zeros(1, 4),)
    gc.disable()  # what is converted later would be freed by it at some time
    try:
        for _ in range(3):
            module = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU())
            export.convert(module, inputs, ([1, 4],))
            gone = weakref.ref(module)
            del module
            assert gone() is None
    finally:
        gc.enable()
    # A type that is registered already would be given another name, with mangle in it.
    name = torch.jit.trace(torch.nn.Sequential(torch.nn.Linear(4, 4)), inputs)._c._type().qualified_name()
    assert 'mangle' not in name
