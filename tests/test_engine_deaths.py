"""The policy node comes up where an engine takes its process along, and says so."""

import json
import os
from pathlib import Path

from lifecycle_msgs.msg import Transition

DYING = Path(__file__).resolve().parents[1] / 'src' / 'vla_model' / 'test' / 'dying'


def test_the_node_comes_up_on_the_next_best_engine_or_names_the_one_asked_for(graph, tmp_path):
    deaths = {'openvino-bfloat16': 'SIGFPE', 'openvino-int8': 'SIGILL', 'openvino-float32': 'exit'}
    environment = {
        'XDG_CACHE_HOME': str(tmp_path / 'cache'),
        'VLA_TEST_DEATHS': json.dumps(deaths),
        'PYTHONPATH': os.pathsep.join([str(DYING), os.environ.get('PYTHONPATH', '')]),
    }
    images = {'image_engine': 'eager', 'image_dtype': 'float32', 'threads': '1'}
    node = graph.start('vla_policy_node', 'policy_node', params=images, **environment)
    assert graph.transition('policy', Transition.TRANSITION_CONFIGURE), graph.outputs()
    log = graph.outputs()
    for engine, end in (('bfloat16', 'was killed by SIGFPE'), ('int8', 'was killed by SIGILL'), ('float32', 'ended')):
        assert f'[policy]: engine openvino-{engine} {end}' in log
    assert "when it was tried on this machine: engine 'eager' is taken" in log
    assert graph.stop(node) == 0

    asked = graph.start(
        'vla_policy_node', 'policy_node', params={**images, 'engine': 'openvino-bfloat16'}, **environment
    )
    assert not graph.transition('policy', Transition.TRANSITION_CONFIGURE)
    assert asked.poll() is None and graph.state('policy') == 'unconfigured'
    assert 'cannot configure: engine openvino-bfloat16 was killed by SIGFPE' in graph.outputs()
    assert "take engine 'eager' or 'auto'" in graph.outputs()
