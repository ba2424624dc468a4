"""Makes engines of OpenVINO end their process, for tests that put this folder on PYTHONPATH: Python imports it then.

VLA_TEST_DEATHS is JSON, from the name of an engine to a signal, 'exit', 'hang' or 'memory'.
"""

import json
import os
import signal
import time

from vla_model import engine_openvino

DEATHS = json.loads(os.environ.get('VLA_TEST_DEATHS', '{}'))
_make = engine_openvino.OpenVino.__init__


def _dying(self, precision, *rest):
    how = DEATHS.get(f'openvino-{precision}', '')
    if how == 'exit':
        os._exit(3)
    if how == 'hang':
        time.sleep(3600)
    if how == 'memory':
        raise MemoryError
    if how:
        os.kill(os.getpid(), getattr(signal, how))
    _make(self, precision, *rest)


engine_openvino.OpenVino.__init__ = _dying
