"""Property tests draw the same examples on every run, and a busy machine fails none of them for being slow."""

from hypothesis import settings

from tests.daemons import clock, neighbourhood

__all__ = ["clock", "neighbourhood"]

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")
