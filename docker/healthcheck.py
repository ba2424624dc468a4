"""Exit code 0 if the node that VLA_HEALTH names (policy, executor; with namespace) says that it is active.

Without VLA_HEALTH all is well: what runs has no lifecycle.
"""

import os
import sys

from vla_bringup.processes.probe import Probe

if name := os.environ.get('VLA_HEALTH', ''):
    with Probe('health') as probe:
        try:
            state = probe.lifecycle_state(name, 10.0)
        except TimeoutError as error:
            state = str(error)
    if state != 'active':
        sys.exit(f'{name}: {state}')
