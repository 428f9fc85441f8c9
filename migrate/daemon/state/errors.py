"""Why a state directory cannot be used.  None of these belongs to an attempt: the daemon does not start, or must stop.

A write that failed and left everything as it was is `migrate.errors.JournalFailed`.
"""


class StateError(Exception):
    """The state directory cannot be used: one line that says what, where, and what to do instead."""


class JournalDamaged(StateError):
    """The journal is not the one that was last seen here: damaged, deleted, or gone backwards."""
