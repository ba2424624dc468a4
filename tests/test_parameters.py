"""What is known of the nodes' parameters before they run is what the running nodes have."""

import pytest

from vla_bringup import parameters
from vla_bringup.processes.nodes import share
from vla_bringup.processes.overrides import TABLE

from .conftest import ROOT


@pytest.mark.slow
def test_the_table_of_parameters_is_that_of_the_nodes(domain):
    asked = parameters.ask_nodes({'engine': 'eager', 'image_engine': 'eager'})  # nothing is measured
    assert parameters.table_text(asked) == share(TABLE).read_text(), 'run ./vla parameters'
    page = (ROOT / 'docs/reference/parameters.md').read_text()
    assert not [d.name for found in asked.values() for d, _ in found if f'| `{d.name}` |' not in page]
