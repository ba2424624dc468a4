"""For all tests: hypothesis times nothing, as how long an example takes says how busy the machine is."""

from hypothesis import HealthCheck, settings

settings.register_profile('suite', settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile('suite')
