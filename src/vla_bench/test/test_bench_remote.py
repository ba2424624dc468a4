"""./vla bench remote on a few calls."""

from vla_bench.remote import measure
from vla_model.checkpoints.shipped import RANDOM
from vla_model.loading import LoadOptions, load


def test_chunks_behind_a_server_are_those_of_the_policy_in_bits():
    policy = load(RANDOM, LoadOptions(threads=1))
    found = measure(policy, 3)
    assert (
        found.equal
        and len(found.here) == len(found.there) == 3
        and (found.overhead > 0).all()
        and (found.overhead < found.there).all()
    )
