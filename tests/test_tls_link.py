"""The link over TLS: what holds over TCP in the clear holds here, and what TLS itself may do in between."""

import os
import shutil
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from migrate.daemon.link import SocketLink
from migrate.daemon.transport import ENCRYPT_AT_ONCE, READ_MAX, TlsTransport
from migrate.errors import DeadlineExpired, PeerFailed, RemoteProtocolError, TransportLost
from migrate.protocol.deadlines import Deadlines
from migrate.protocol.messages import Paused, Role
from tests import test_link
from tests.certificates import Holders
from tests.daemons import PATIENT
from tests.test_link import (
    FAILURE,
    MIB,
    batch_of,
    both,
    changed_on_its_way,
    clock,
    connection,
    reach_ram,
    send_more_than_fits,
    test_a_failure_of_the_peer_is_heard_before_the_next_message_is_sent,
    test_a_message_too_large_for_its_frame_is_not_sent,
    test_a_peer_that_does_not_read_runs_into_the_frame_deadline,
    test_a_phase_that_is_entered_again_has_all_its_time_again,
    test_a_silent_peer_runs_into_the_frame_deadline,
    test_cancelling_between_two_operations_ends_the_next_one_and_is_said_once,
    test_cancelling_ends_a_wait_and_the_peer_can_still_be_told,
    test_cancelling_ends_a_wait_for_page_contents,
    test_cancelling_in_the_middle_of_a_message_lets_nothing_follow_but_a_farewell,
    test_last_words_that_nobody_reads_do_not_hold_up_the_speaker,
    test_once_forbidden_cancelling_comes_too_late_and_disturbs_nothing,
    test_page_contents_that_do_not_come_run_into_the_frame_deadline,
    test_quick_messages_without_end_run_into_the_phase_deadline,
    test_the_kernel_says_how_long_the_way_there_and_back_is,
    test_what_is_not_ours_to_say_is_not_sent,
)

__all__ = [
    "clock",
    "test_a_failure_of_the_peer_is_heard_before_the_next_message_is_sent",
    "test_a_message_too_large_for_its_frame_is_not_sent",
    "test_a_peer_that_does_not_read_runs_into_the_frame_deadline",
    "test_a_phase_that_is_entered_again_has_all_its_time_again",
    "test_a_silent_peer_runs_into_the_frame_deadline",
    "test_cancelling_between_two_operations_ends_the_next_one_and_is_said_once",
    "test_cancelling_ends_a_wait_and_the_peer_can_still_be_told",
    "test_cancelling_ends_a_wait_for_page_contents",
    "test_cancelling_in_the_middle_of_a_message_lets_nothing_follow_but_a_farewell",
    "test_last_words_that_nobody_reads_do_not_hold_up_the_speaker",
    "test_once_forbidden_cancelling_comes_too_late_and_disturbs_nothing",
    "test_page_contents_that_do_not_come_run_into_the_frame_deadline",
    "test_quick_messages_without_end_run_into_the_phase_deadline",
    "test_the_kernel_says_how_long_the_way_there_and_back_is",
    "test_what_is_not_ours_to_say_is_not_sent",
]


@pytest.fixture(autouse=True)
def over_tls(holders: Holders, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every pair of links of this module, and of what it takes from `test_link`."""

    async def secured(source: trio.SocketStream, target: trio.SocketStream) -> tuple[TlsTransport, TlsTransport]:
        return await shaken(holders, source, target)

    monkeypatch.setattr(test_link, "carried", secured)


async def shaken(
    holders: Holders, source: trio.SocketStream, target: trio.SocketStream
) -> tuple[TlsTransport, TlsTransport]:
    """Both ends, after the handshake."""
    ends = (
        TlsTransport(source, holders.source.tls("target").context(Role.SOURCE), Role.SOURCE),
        TlsTransport(target, holders.target.tls("source").context(Role.TARGET), Role.TARGET),
    )
    async with trio.open_nursery() as nursery:
        for end in ends:
            nursery.start_soon(end.handshake)
    return ends


@asynccontextmanager
async def transports(holders: Holders) -> AsyncIterator[tuple[TlsTransport, TlsTransport]]:
    async with connection() as streams:
        yield await shaken(holders, *streams)


async def send_all(transport: TlsTransport, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[await transport.send([rest]) :]
    await transport.flush()


async def receive_all(transport: TlsTransport, length: int, at_once: int) -> bytes:
    arrived = bytearray(length)
    rest = memoryview(arrived)
    while rest:
        count = await transport.recv_into(rest[:at_once])
        assert count > 0
        rest = rest[count:]
    return bytes(arrived)


@pytest.mark.parametrize("at_once", [1000, 1 << 14, 3 * MIB])
async def test_bytes_arrive_as_they_were_sent_whatever_the_reader_takes_at_once(holders: Holders, at_once: int) -> None:
    data = os.urandom(3 * MIB)  # far more than any buffer on the way
    async with transports(holders) as (source, target), trio.open_nursery() as nursery:
        nursery.start_soon(send_all, source, data)
        assert await receive_all(target, len(data), at_once) == data


async def test_no_more_is_read_or_encrypted_ahead_than_a_buffer_holds(holders: Holders) -> None:
    async with transports(holders) as (source, target):
        assert await source.send([memoryview(bytes(8 * MIB))]) == ENCRYPT_AT_ONCE
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_all, source, bytes(8 * MIB))
            await receive_all(target, 4 * MIB, 4096)  # what was read beyond that has to lie somewhere
            assert len(target._read_buffer) <= READ_MAX
            assert target._incoming.pending <= READ_MAX
            nursery.cancel_scope.cancel()


@given(sizes=st.lists(st.integers(1, 40_000), min_size=1, max_size=6), at_once=st.integers(500, 50_000))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])  # it only reads the fixtures
def test_pieces_of_any_size_are_read_in_pieces_of_any_size(holders: Holders, sizes: list[int], at_once: int) -> None:
    data = [bytes([number % 251]) * size for number, size in enumerate(sizes)]

    async def pass_through() -> bytes:
        async with transports(holders) as (source, target), trio.open_nursery() as nursery:

            async def speak() -> None:
                for piece in data:
                    await send_all(target, piece)

            nursery.start_soon(speak)
            return await receive_all(source, sum(sizes), at_once)

    assert trio.run(pass_through) == b"".join(data)


async def test_news_is_told_of_data_and_of_the_end_and_takes_nothing_away(holders: Holders) -> None:
    async with transports(holders) as (source, target):
        assert not source.has_news()
        await send_all(target, b"ab")
        await trio.sleep(0.01)
        assert source.has_news()
        assert source.has_news()
        assert await receive_all(source, 2, 1) == b"ab"
        assert not source.has_news()
        target.close()
        await trio.sleep(0.01)
        assert source.has_news()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl here")
async def test_records_that_only_change_keys_are_no_news_and_are_answered(holders: Holders) -> None:
    """OpenSSL's command line is the peer: the `ssl` module cannot ask for new keys."""
    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    async with listener:
        port = listener.socket.getsockname()[1]
        me = holders.target
        command = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-tls1_3", "-cert", str(me.certificate)]
        command += ["-key", str(me.key), "-CAfile", str(me.authority)]
        async with trio.open_nursery() as nursery:
            process = await nursery.start(lambda task_status: openssl(command, task_status))
            stream = await listener.accept()
            end = TlsTransport(stream, holders.source.tls("target").context(Role.SOURCE), Role.SOURCE)
            await end.handshake()
            assert process.stdin is not None
            await process.stdin.send_all(b"K\n")  # new keys of both sides
            while not end._readable.poll(0):  # noqa: ASYNC110  # nobody else would say that the record has come
                await trio.sleep(0.002)
            assert not end.has_news()
            await process.stdin.send_all(b"after\n")
            assert await receive_all(end, 6, 100) == b"after\n"
            await send_all(end, b"answer\n")
            process.terminate()
            end.close()


async def openssl(command: list[str], task_status: trio.TaskStatus[trio.Process]) -> None:
    await trio.run_process(
        command,
        stdin=-1,
        capture_stdout=True,
        capture_stderr=True,
        check=False,
        task_status=task_status,
    )


async def test_a_connection_that_breaks_off_without_a_word_is_told_from_one_that_ended(holders: Holders) -> None:
    async with transports(holders) as (source, target):
        target.close()  # as the kernel does for a process that was killed
        link = SocketLink(Role.SOURCE, source, PATIENT)
        with pytest.raises(TransportLost, match="it broke off without TLS's word of an end"):
            await link.receive()
        source.close()
    async with transports(holders) as (source, target):
        link = SocketLink(Role.SOURCE, source, PATIENT)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(target.leave)
            with pytest.raises(TransportLost, match="closed the connection in phase 'hello', between two messages"):
                await link.receive()
            source.close()


async def test_a_record_that_was_changed_on_the_way_ends_the_connection(holders: Holders) -> None:
    async with connection() as streams:
        source, target = await shaken(holders, *streams)
        sealed = target._outgoing
        target._tls.write(b"some words")
        record = bytearray(sealed.read())
        record[-1] ^= 1
        await streams[1].send_all(record)
        link = SocketLink(Role.SOURCE, source, PATIENT)
        with pytest.raises(RemoteProtocolError, match=r"the peer's TLS is wrong: .*bad record mac"):
            await link.receive()
        source.close()


async def test_last_words_reach_a_peer_that_is_still_sending_ram(holders: Holders) -> None:
    async with transports(holders) as (source_end, target_end):
        source = SocketLink(Role.SOURCE, source_end, PATIENT)
        target = SocketLink(Role.TARGET, target_end, Deadlines(farewell_s=10))
        await reach_ram(source, target)

        async def fail_early() -> None:
            async with target:
                await target.receive()
                await target.send(FAILURE)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail_early)
            with trio.fail_after(5), pytest.raises(PeerFailed, match="it broke"):
                await send_more_than_fits(source)
            source_end.close()


async def test_a_batch_arrives_whole_in_the_receivers_own_buffers() -> None:
    async with both() as (source, target):
        await reach_ram(source, target)
        content = os.urandom(2 * MIB)
        arrived = bytearray(len(content))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(source.send_ram, batch_of(content), memoryview(content))
            assert await target.receive() == batch_of(content)
            await target.receive_ram([memoryview(arrived)[: MIB // 3], memoryview(arrived)[MIB // 3 :]])
            await source.send(Paused())
        assert arrived == content
        assert await target.receive() == Paused()


async def test_what_a_guest_writes_while_a_batch_is_on_its_way_does_not_come_with_it() -> None:
    async with both() as (source, target):
        await reach_ram(source, target)
        await changed_on_its_way(source, target)


async def test_a_cancelled_send_has_taken_nothing_and_what_follows_is_whole(holders: Holders) -> None:
    async with transports(holders) as (source, target):
        taken = 0
        while taken < 64 * MIB:
            with trio.move_on_after(0.05) as scope:
                taken += await source.send([memoryview(b"x" * MIB)])
            if scope.cancelled_caught:
                break
        assert taken < 64 * MIB, "the kernel takes no more"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_all, source, b"after")
            assert await receive_all(target, taken + 5, MIB) == b"x" * taken + b"after"


async def test_a_handshake_says_nothing_when_a_message_would_be_late(holders: Holders) -> None:
    """A silent peer is not waited for longer over TLS than without."""
    async with transports(holders) as (source, _):
        link = SocketLink(Role.SOURCE, source, Deadlines(frame_s=0.05, farewell_s=0.05))
        with trio.fail_after(5), pytest.raises(DeadlineExpired, match="phase 'hello', waiting for the peer"):
            await link.receive()
        source.close()


async def test_only_tls_1_3_is_spoken(holders: Holders) -> None:
    async with connection() as (source, target):
        end = TlsTransport(source, holders.source.tls("target").context(Role.SOURCE), Role.SOURCE)
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.check_hostname = False
        old.load_verify_locations(holders.target.authority)
        old.load_cert_chain(holders.target.certificate, holders.target.key)
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        client = trio.SSLStream(target, old)

        async def try_old() -> None:
            with pytest.raises(trio.BrokenResourceError):
                await client.do_handshake()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(try_old)
            with pytest.raises(RemoteProtocolError, match="unsupported protocol"):
                await end.handshake()
