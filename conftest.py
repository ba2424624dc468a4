"""What holds for all tests."""

from domain_coordinator import impl
from hypothesis import HealthCheck, settings

# Hypothesis times nothing: how long an example takes says how busy the machine is.
settings.register_profile('suite', settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile('suite')

# Every test gets a domain that no test of this process had before it, and not the lowest one again. A participant that
# DDS makes soon after another one, in the same process and domain, can be lost with it: in three of 60 nodes a service
# that had answered was gone for good, in none of 120 with a domain each.
_domains = impl.default_selector()
impl.default_selector = lambda: _domains
