"""What holds for all tests: generated examples are not timed, since a busy machine would fail them."""

from hypothesis import HealthCheck, settings

settings.register_profile("snncc", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("snncc")
