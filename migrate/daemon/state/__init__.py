"""The state directory of a node: what it must still know after kill -9 and after a loss of power.

    lock             flock(2) of the daemon, and its pid
    journal.sqlite   machines, records, pause images, debts, history, facts (-wal and -shm are SQLite's)
    seen             the witness: how far the journal had come
    ram/             RAM files of machines, made by others

`contents.py` says what is kept, `database.py` how it is made durable, `witness.py` how a journal that went backwards
is noticed, `journal.py` is the engines' port for one machine, and `directory.py` puts them together.
"""

from migrate.daemon.state.contents import Attempt, Debt, KnownMachine, PauseImage
from migrate.daemon.state.database import DiskTrouble
from migrate.daemon.state.directory import MachineState, StateDirectory, current_boot_id
from migrate.daemon.state.errors import JournalDamaged, StateError
from migrate.daemon.state.journal import DurableJournal

__all__ = [
    "Attempt",
    "Debt",
    "DiskTrouble",
    "DurableJournal",
    "JournalDamaged",
    "KnownMachine",
    "MachineState",
    "PauseImage",
    "StateDirectory",
    "StateError",
    "current_boot_id",
]
