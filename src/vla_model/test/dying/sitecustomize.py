"""Makes engines of OpenVINO end their process, for tests that put this folder on PYTHONPATH: Python imports it then.

VLA_TEST_DEATHS is JSON, from the name of an engine, or of an image engine and its precision, to a signal, 'exit',
'hang' or 'memory'. VLA_TEST_TRYING is the bound of a trial [s].
"""

import json
import os
import signal
import time

from vla_model.engines import image as image_engine
from vla_model.engines import openvino as engine_openvino
from vla_model.engines import trial

DEATHS = json.loads(os.environ.get('VLA_TEST_DEATHS', '{}'))
trial.TRYING = float(os.environ.get('VLA_TEST_TRYING', trial.TRYING))


def _die(how):
    if how == 'exit':
        os._exit(3)
    if how == 'hang':
        time.sleep(3600)
    if how == 'memory':
        raise MemoryError
    if how:
        os.kill(os.getpid(), getattr(signal, how))


def _dying(make, name):
    """A constructor like `make` that ends the process where name(its arguments) has to die."""

    def init(self, *arguments):
        _die(DEATHS.get(name(*arguments), ''))
        make(self, *arguments)

    return init


_engine, _encoder = engine_openvino.OpenVino, image_engine.OpenVinoEncoder
_engine.__init__ = _dying(_engine.__init__, lambda precision, *_: f'openvino-{precision}')
_encoder.__init__ = _dying(_encoder.__init__, lambda _, precision: f'openvino {precision}')
