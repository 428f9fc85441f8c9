"""How a host ends: what is in progress is completed, or undone where it can be; nothing new is begun."""

from pathlib import Path
from uuid import uuid4

import pytest
import trio

from migrate.daemon.host.host import Ending, NotPossible
from tests.daemons import until
from tests.hosts import SLOW, begin, hosting, in_ram, over


@pytest.mark.parametrize("ending", list(Ending))
@pytest.mark.parametrize("side", ["source", "target"])
async def test_a_host_that_ends_completes_or_undoes_what_is_in_progress(
    tmp_path: Path, ending: Ending, side: str
) -> None:
    async with (
        hosting(tmp_path / "a", migrations_max=2, bandwidth=SLOW) as source,
        hosting(tmp_path / "b", migrations_max=2) as target,
    ):
        await source.boot("a", "b", "c")
        going = [await begin(source, target, name) for name in ("a", "b")]
        await in_ram(source, 2)
        ends = source if side == "source" else target
        async with trio.open_nursery() as nursery:
            nursery.start_soon(source.host.offer, "c", waiting := uuid4(), 0)
            await until(lambda: source.host.outgoing.waiting == 1)
            nursery.start_soon(ends.host.end, ending)
            await until(lambda: ends.all("ending"))
            with pytest.raises(NotPossible, match="the host is ending: nothing new is begun"):
                await ends.boot("d")
            if ending is Ending.DRAIN:
                source.host.limit(None, 0)
            expected = "migrated" if ending is Ending.DRAIN else "failed"
            assert [(await over(migration)).outcome for migration in going] == [expected] * 2
            if side == "target":
                source.host.cancel(str(waiting))
        await until(lambda: target.names == (["a", "b"] if ending is Ending.DRAIN else []))
        await until(lambda: source.names == (["c"] if ending is Ending.DRAIN else ["a", "b", "c"]))
        left = ends.host.left()
        assert left["in_doubt"] == 0
        assert sorted(machine["machine"] for machine in left["left"]) == ends.names
        if side == "source":
            conclusion = await over(source.host.migration(waiting))
            assert conclusion.error is not None
            assert conclusion.error["message"] == "the host is ending"


async def test_a_host_with_nothing_in_progress_ends_at_once_and_withdraws_what_is_offered() -> None:
    async with hosting() as host:
        await host.boot("a")
        offered = await host.host.offer("a", uuid4(), 0)
        await host.host.end(Ending.DRAIN)
        assert (await over(offered)).outcome == "cancelled"
        assert host.names == ["a"], "it runs until the process ends"
