"""A host: one daemon that has many machines, takes many in and gives many away, at one migration port.

Each machine keeps what it has in a daemon of its own: a node, a journal in a state directory, a source that serves it,
a target that brings it in (`hosted.py`).  What they share is here: the port, names and ids (`host.py`), slots for
migrations and their order (`migrate.daemon.slots`), memory (`budget.py`), bandwidth (`bandwidth.py`), the directories
(`places.py`), and whoever is in control (`control.py`, `requests.py`, `client.py`).
"""
