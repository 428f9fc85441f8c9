"""A campaign over a cluster: the same work, told clearly when there is no cluster, and nothing half done."""

import json
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import CancelledError
from importlib.util import find_spec
from pathlib import Path

import attrs
import pytest

from migrate.faults import campaign as campaigns
from migrate.faults import cluster as clusters
from migrate.faults.campaign import Campaign, Kind, Order, try_chunk
from migrate.faults.cluster import ClusterError, ClusterLost, Shipped, address_of, leave, try_shipped
from migrate.faults.explore import Experiment
from migrate.simulation.machines import RealMachines
from tests.commands import EXAMPLE, call, running
from tests.worlds import SPEC

Capsys = pytest.CaptureFixture[str]

EXPERIMENT = Experiment(spec=SPEC)
needs_dask = pytest.mark.skipif(
    find_spec("distributed") is None, reason="dask.distributed, the extra `cluster`, is not installed"
)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A cluster of one scheduler and two worker processes on this machine."""
    from distributed import LocalCluster

    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50) as local:
        yield str(local.scheduler_address).replace("tcp://", clusters.SCHEME)


@needs_dask
def test_a_cluster_finds_what_the_processes_of_one_machine_find(capsys: Capsys, tmp_path: Path, address: str) -> None:
    arguments = ("explore", EXAMPLE, "--random", "130", "--json", "--report")
    spread = call(capsys, *arguments, tmp_path / "spread.html", "--executor", address)
    assert spread.code == 0, spread.err
    alone = call(capsys, *arguments, tmp_path / "alone.html", "--workers", "1")
    assert spread.document["outcomes"] == alone.document["outcomes"]
    assert (tmp_path / "spread.html").read_text() == (tmp_path / "alone.html").read_text()


@needs_dask
async def test_an_interrupted_campaign_over_a_cluster_leaves_a_whole_file(tmp_path: Path, address: str) -> None:
    file = tmp_path / "campaign.json"
    arguments = ("explore", EXAMPLE, "--random", "1000000", "--campaign", file)
    async with running(*arguments, "--executor", address, executed=True) as command:
        line = await command.says("schedules")
        command.process.send_signal(signal.SIGINT)
        assert await command.ends() == 130
    assert "of 10,000 parts" in line
    work = Campaign.load(file, Order(kind=Kind.RANDOM, random=1_000_000))
    assert work.schedules == work.chunks_done * campaigns.CHUNK_PLANS > 0
    assert sum(work.outcomes.values()) == work.schedules


# No cluster


@pytest.mark.parametrize(
    "text", ["dask://", "dask://host", "dask://:1", "dask://host:x", "dask://host:65536", "tcp://h:1"]
)
def test_what_is_no_address_is_refused(capsys: Capsys, text: str) -> None:
    said = call(capsys, "explore", EXAMPLE, "--executor", text)
    assert said.code == 2
    assert said.complaint == f"migrate: --executor: {text!r} is no address of a cluster; write dask://HOST:PORT"


@pytest.mark.parametrize("host", ["127.0.0.1:8786", "[::1]:8786", "some-host.example:1"])
def test_an_address_is_one_of_tcp(host: str) -> None:
    assert address_of(f"dask://{host}") == f"tcp://{host}"


@needs_dask
def test_a_cluster_that_is_not_there_is_one_line(capsys: Capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusters, "CONNECT_S", 0.5)
    said = call(capsys, "explore", EXAMPLE, "--executor", "dask://127.0.0.1:1")
    assert said.code == 2
    assert said.complaint.startswith("migrate: --executor: no cluster can be reached at dask://127.0.0.1:1: ")


def test_without_the_extra_it_says_what_to_install(capsys: Capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    said = call(capsys, "explore", EXAMPLE, "--executor", "dask://127.0.0.1:1")
    assert said.code == 2
    assert "needs dask.distributed: pip install 'migrate-rehearsal[cluster]'" in said.complaint


def test_workers_and_a_cluster_at_once_are_refused(capsys: Capsys) -> None:
    said = call(capsys, "explore", EXAMPLE, "--executor", "dask://127.0.0.1:1", "--workers", "2")
    assert said.code == 2
    assert said.complaint.endswith("which has workers of its own; say one")


@pytest.mark.parametrize(
    ("raised", "told", "words"),
    [
        (CancelledError("try_shipped-1"), ClusterLost, "was lost: try_shipped-1"),
        (ConnectionResetError("peer"), ClusterLost, "was lost: peer"),
        (type("KilledWorker", (Exception,), {})("died\n3 times"), ClusterLost, "was lost: died"),
        (ModuleNotFoundError("No module named 'migrate'"), ClusterError, "lacks something: No module named 'migrate'"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_dask_raises_is_told_in_our_terms(raised: Exception, told: type[Exception], words: str) -> None:
    with pytest.raises(told, match=words), clusters._saying_why("dask://host:1"):
        raise raised


def test_a_bug_stays_a_bug() -> None:
    with pytest.raises(ZeroDivisionError), clusters._saying_why("dask://host:1"):
        raise ZeroDivisionError


# In a worker


@pytest.mark.parametrize(
    "experiment",
    [
        EXPERIMENT,
        Experiment(spec=SPEC, foundry=RealMachines()),
        Experiment(spec=SPEC, fenced=True, streams=3, seed=5),
    ],
)
def test_an_experiment_arrives_as_it_was_sent(experiment: Experiment) -> None:
    assert Shipped.of(experiment).unpacked() == experiment
    assert json.dumps(Shipped.of(experiment).document)  # plain values


def test_a_worker_of_another_version_refuses() -> None:
    with pytest.raises(ClusterError, match=r"a worker has migrate-rehearsal .*, and here is 9\.9: install the same"):
        attrs.evolve(Shipped.of(EXPERIMENT), release="9.9").unpacked()


def test_a_process_is_prepared_once_and_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaigns, "CHUNK_PLANS", 3)
    prepared: list[Experiment] = []
    prepare = campaigns.prepare_worker

    def counted(experiment: Experiment) -> None:
        prepared.append(experiment)
        prepare(experiment)

    monkeypatch.setattr(campaigns, "prepare_worker", counted)
    order, shipped = Order(kind=Kind.RANDOM, random=6), Shipped.of(EXPERIMENT)
    try:
        chunks = [try_shipped(shipped, order, number) for number in (0, 1)]
        assert chunks == [try_chunk(order, number) for number in (0, 1)]
        assert prepared == [EXPERIMENT]
        with clusters._one_at_a_time:
            leave()  # a chunk is under way
        assert clusters._prepared == [shipped]
    finally:
        leave()
    assert clusters._prepared == []
    assert campaigns._experiments == []
