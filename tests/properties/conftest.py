"""One hypothesis profile for all properties: the same examples each run, no clock, no database."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

settings.register_profile(
    "ci",
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=int(os.environ.get("PROPERTY_EXAMPLES", "50")),  # more of them: minutes
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("ci")
