"""A campaign over a dask.distributed cluster, through its concurrent.futures interface.

A chunk takes the experiment along, in a form that can be sent, and the process that gets it prepares itself the first
time.  So workers may come late, die and be replaced.  One process tries one chunk at a time, however many threads it
has, as what is remembered there is shared.  The campaign itself, its file and the shrinking stay here.

dask.distributed is the extra `cluster`; nobody else pays for importing it.
"""

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Executor, Future
from contextlib import contextmanager
from importlib.metadata import version
from threading import Lock
from typing import Any, Final

import attrs

from migrate.faults import campaign
from migrate.faults.campaign import Chunk, Order
from migrate.faults.explore import Experiment
from migrate.simulation.machines import Foundry
from migrate.specs import BY_NUMBER
from migrate.specs.offer import Variant, offer

SCHEME: Final = "dask://"
CONNECT_S: Final = 10.0
DISTRIBUTION: Final = "migrate-rehearsal"


class ClusterError(Exception):
    """There is no such cluster, or it cannot be used: why, and what would do."""


class ClusterLost(Exception):
    """The cluster is gone, or a part of the campaign that it was given."""


@attrs.frozen(kw_only=True)
class Shipped:
    """An experiment in plain values: the spec as a document of its version."""

    version: int
    document: Any
    foundry: Foundry
    fenced: bool
    streams: int
    seed: int
    release: str

    @classmethod
    def of(cls, experiment: Experiment) -> "Shipped":
        variant = next(entry for entry in offer(experiment.spec) if isinstance(entry, Variant))
        document = BY_NUMBER[variant.version].encode(experiment.spec)
        return cls(
            version=variant.version,
            document=document,
            foundry=experiment.foundry,
            fenced=experiment.fenced,
            streams=experiment.streams,
            seed=experiment.seed,
            release=version(DISTRIBUTION),
        )

    def unpacked(self) -> Experiment:
        """Raises ClusterError if this process has another version of us: it would try other plans."""
        here = version(DISTRIBUTION)
        if here != self.release:
            raise ClusterError(f"a worker has {DISTRIBUTION} {here}, and here is {self.release}: install the same")
        return Experiment(
            spec=BY_NUMBER[self.version].decode(self.document),
            foundry=self.foundry,
            fenced=self.fenced,
            streams=self.streams,
            seed=self.seed,
        )


# In a worker

_one_at_a_time: Final = Lock()
_prepared: list[Shipped] = []


def try_shipped(shipped: Shipped, order: Order, number: int, keep_tally: bool = False) -> Chunk:
    """`try_chunk` in whatever process this is, which is prepared first if it is not."""
    with _one_at_a_time:
        if _prepared != [shipped]:
            experiment = shipped.unpacked()
            campaign.prepare_worker(experiment)
            _prepared[:] = [shipped]
        return campaign.try_chunk(order, number, keep_tally)


def leave() -> None:
    """The process is as it was before the campaign, unless it is still busy with a chunk that nobody wants any more."""
    if _one_at_a_time.acquire(blocking=False):
        try:
            _prepared.clear()
            campaign.leave_worker()
        finally:
            _one_at_a_time.release()


# In charge


@attrs.frozen
class Shipping:
    """An executor that ships its experiment with each chunk."""

    executor: Executor
    shipped: Shipped

    def submit(self, function: Callable[..., Chunk], /, *arguments: Any) -> "Future[Chunk]":
        assert function is campaign.try_chunk, "a campaign asks for chunks"
        future: Future[Chunk] = self.executor.submit(try_shipped, self.shipped, *arguments)
        return future


def address_of(text: str) -> str:
    """`tcp://HOST:PORT` of `dask://HOST:PORT`.  Raises ClusterError."""
    host, colon, port = text.removeprefix(SCHEME).rpartition(":")
    if not (text.startswith(SCHEME) and colon and host and port.isascii() and port.isdigit() and int(port) < 1 << 16):
        raise ClusterError(f"{text!r} is no address of a cluster; write {SCHEME}HOST:PORT")
    return f"tcp://{host}:{port}"


@contextmanager
def cluster(text: str, experiment: Experiment) -> Iterator[tuple[Shipping, int]]:
    """The cluster at `dask://HOST:PORT`, and how many threads its workers have; this process is prepared as well.

    Raises:
        ClusterError: no such address, nobody there, no worker, another version of us, or the extra is not installed.
        ClusterLost: it went away meanwhile.
    """
    address = address_of(text)
    try:
        from distributed import Client
    except ImportError as error:
        raise ClusterError(f"{text} needs dask.distributed: pip install '{DISTRIBUTION}[cluster]' ({error})") from None
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what goes wrong is said once, by us
    try:
        client = Client(address, timeout=CONNECT_S, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ClusterError(f"no cluster can be reached at {text}: {_first_line(error)}") from None
    campaign.prepare_worker(experiment)
    try:
        with _saying_why(text):
            yield from _ready(client, text, address, experiment)
    finally:
        client.close()
        campaign.leave_worker()


def _ready(client: Any, text: str, address: str, experiment: Experiment) -> Iterator[tuple[Shipping, int]]:
    try:
        threads = sum(client.nthreads().values())
        if not threads:
            raise ClusterError(f"the cluster at {text} has no worker; start one with: dask worker {address}")
        yield Shipping(client.get_executor(pure=False, retries=1), Shipped.of(experiment)), threads
    finally:
        _part(client)


@contextmanager
def _saying_why(text: str) -> Iterator[None]:
    """What dask raises when a cluster is lost, or cannot do our work, in our own terms."""
    try:
        yield
    except ImportError as error:
        raise ClusterError(f"a worker of the cluster at {text} lacks something: {error}; install the same") from error
    except Exception as error:
        if isinstance(error, CancelledError | OSError) or type(error).__name__ == "KilledWorker":
            raise ClusterLost(f"the cluster at {text} was lost: {_first_line(error)}") from error
        raise


def _part(client: Any) -> None:
    """What is still asked for is not wanted any more; the workers stay as they were found, if they are still there."""
    try:
        client.cancel(list(client.futures))
        client.run(leave, on_error="ignore")
    except Exception as error:  # whatever went wrong before is told, and not this
        logging.getLogger(__name__).debug("the cluster was left as it is: %s", error)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
