"""What a source tells a target that comes back after a lost connection: the whole table."""

from itertools import product

import pytest

from migrate.engine.handoff import Holding, Record, after_settle, answer_settle
from migrate.protocol.messages import Abandon, Commit, Released, Settle

O, C, R, N = Holding.OWNER, Holding.COMMITTED, Holding.READY, Holding.NOT_OWNER  # noqa: E741  # the design's letters
HELD, OWNED = False, True

#: The source's record; the generation that the target asks about; whether it owns it or holds an image; the answer;
#: the record that is written before the answer is sent.
TABLE: list[tuple[Record, int, bool, type[Commit | Released | Abandon], Record]] = [
    (Record(O, 5), 4, HELD, Abandon, Record(O, 5)),
    (Record(O, 5), 5, HELD, Abandon, Record(O, 5)),
    (Record(O, 5), 6, HELD, Abandon, Record(O, 5)),
    (Record(O, 5), 4, OWNED, Abandon, Record(O, 5)),
    (Record(O, 5), 5, OWNED, Abandon, Record(O, 5)),
    (Record(O, 5), 6, OWNED, Abandon, Record(O, 5)),
    (Record(C, 5), 4, HELD, Abandon, Record(C, 5)),
    (Record(C, 5), 5, HELD, Commit, Record(C, 5)),
    (Record(C, 5), 6, HELD, Abandon, Record(C, 5)),
    (Record(C, 5), 4, OWNED, Abandon, Record(C, 5)),
    (Record(C, 5), 5, OWNED, Released, Record(N, 5)),
    (Record(C, 5), 6, OWNED, Abandon, Record(C, 5)),
    (Record(R, 5), 4, HELD, Abandon, Record(R, 5)),
    (Record(R, 5), 5, HELD, Abandon, Record(R, 5)),
    (Record(R, 5), 6, HELD, Abandon, Record(R, 5)),
    (Record(R, 5), 4, OWNED, Abandon, Record(R, 5)),
    (Record(R, 5), 5, OWNED, Abandon, Record(R, 5)),
    (Record(R, 5), 6, OWNED, Abandon, Record(R, 5)),
    (Record(N, 5), 4, HELD, Abandon, Record(N, 5)),
    (Record(N, 5), 5, HELD, Abandon, Record(N, 5)),
    (Record(N, 5), 6, HELD, Abandon, Record(N, 5)),
    (Record(N, 5), 4, OWNED, Abandon, Record(N, 5)),
    (Record(N, 5), 5, OWNED, Released, Record(N, 5)),
    (Record(N, 5), 6, OWNED, Abandon, Record(N, 5)),
]


@pytest.mark.parametrize(("record", "asked", "owned", "kind", "written"), TABLE, ids=str)
def test_the_journal_alone_decides_the_answer(
    record: Record, asked: int, owned: bool, kind: type[Commit | Released | Abandon], written: Record
) -> None:
    answer = answer_settle(record, Settle(machine="m", generation=asked, owned=owned))
    assert answer == kind(generation=asked)
    assert after_settle(record, answer) == written


def test_the_table_is_complete() -> None:
    rows = {(record.holding, asked - record.generation, owned) for record, asked, owned, _, _ in TABLE}
    assert rows == set(product(Holding, (-1, 0, 1), (HELD, OWNED)))


@pytest.mark.parametrize(("record", "text"), [(Record(O, 1), "O(1)"), (Record(N, 17), "N(17)")])
def test_a_record_is_written_as_in_the_design(record: Record, text: str) -> None:
    assert str(record) == text
