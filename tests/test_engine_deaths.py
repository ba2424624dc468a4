"""The policy node comes up where an engine takes its process along, and says so."""

import json
import os
from pathlib import Path

import pytest
from lifecycle_msgs.msg import Transition

DYING = Path(__file__).resolve().parents[1] / 'src' / 'vla_model' / 'test' / 'dying'
BOUND = 3  # [s] of a trial
# Each in a way of its own: how it ends, and the node's words of it. They are tried one after the other.
DEATHS = {
    'openvino-bfloat16': ('SIGFPE', 'engine openvino-bfloat16 was killed by SIGFPE'),
    'openvino-int8': ('SIGSEGV', 'engine openvino-int8 was killed by SIGSEGV'),
    'openvino bfloat16': ('SIGILL', 'image_engine openvino bfloat16 was killed by SIGILL'),
    'openvino int8': ('hang', f'image_engine openvino int8 gave no result within {BOUND + 1} s'),
    'openvino-float32': ('exit', 'engine openvino-float32 ended with exit code 3'),
    'openvino float32': ('memory', 'image_engine openvino float32 ran out of memory (MemoryError)'),
}


@pytest.mark.slow
def test_the_node_comes_up_on_the_next_best_engine_or_names_the_one_asked_for(graph, tmp_path):
    environment = {
        'XDG_CACHE_HOME': str(tmp_path / 'cache'),
        'VLA_TEST_DEATHS': json.dumps({name: how for name, (how, _) in DEATHS.items()}),
        'VLA_TEST_TRYING': str(BOUND),
        'PYTHONPATH': os.pathsep.join([str(DYING), os.environ.get('PYTHONPATH', '')]),
    }
    node = graph.start('vla_policy_node', 'policy_node', params={'threads': '1'}, **environment)
    assert graph.transition('policy', Transition.TRANSITION_CONFIGURE), graph.outputs()
    log = graph.output(node)
    for _, words in DEATHS.values():
        instead = "image_engine 'eager' in float32" if words.startswith('image') else "engine 'eager'"
        assert f'[policy]: {words} when it was tried on this machine: {instead} is taken' in log
    assert graph.state('policy') == 'inactive'
    assert graph.stop(node) == 0

    asked = graph.start(
        'vla_policy_node', 'policy_node', params={'threads': '1', 'engine': 'openvino-bfloat16'}, **environment
    )
    assert not graph.transition('policy', Transition.TRANSITION_CONFIGURE)
    assert asked.poll() is None and graph.state('policy') == 'unconfigured'
    assert 'cannot configure: engine openvino-bfloat16 was killed by SIGFPE' in graph.outputs()
    assert "take engine 'eager' or 'auto'" in graph.outputs()
