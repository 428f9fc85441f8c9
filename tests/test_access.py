"""Who may connect: mutual TLS between daemons, what each side says of a peer that it does not accept, and the files."""

import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
import trio

from migrate.daemon.access import Access
from migrate.daemon.address import Address, BadInput
from migrate.daemon.certificates import CertificatesThere, paths_of, write_throw_away
from migrate.daemon.outcome import Outcome
from migrate.daemon.tls import Tls
from migrate.errors import TransportLost
from migrate.protocol.deadlines import Deadlines
from migrate.protocol.messages import Role
from sim_vmm.lifecycle import MachineState
from tests.certificates import Holder, Holders
from tests.daemons import LOOPBACK, Neighbourhood, assert_identical, port_of, until

Chosen = Callable[[Holders], Access]


def tls(chosen: Callable[[Holders], Holder], *peers: str) -> Chosen:
    return lambda holders: Access(tls=chosen(holders).tls(*peers))


def in_the_clear(_: Holders) -> Access:
    return Access()


GOOD_SOURCE: Final = tls(lambda holders: holders.source, "target")
GOOD_TARGET: Final = tls(lambda holders: holders.target, "source")

#: What source and target have, and what each has to say of the other: of the source's event, of the target's error.
MISMATCHES: Final[dict[str, tuple[Chosen, Chosen, str, str]]] = {
    "a target whose certificate another authority has signed": (
        GOOD_SOURCE,
        tls(lambda holders: holders.stranger, "source"),
        "certificate: the peer's is not accepted (unable to get local issuer certificate)",
        "certificate: our own is signed by no authority of the peer's, says the peer",
    ),
    "a target whose certificate has expired": (
        GOOD_SOURCE,
        tls(lambda holders: holders.expired, "source"),
        "certificate: the peer's is not accepted (certificate has expired)",
        "certificate: our own is expired, says the peer",
    ),
    "a target of another name": (
        GOOD_SOURCE,
        tls(lambda holders: holders.elsewhere, "source"),
        "certificate: name is 'elsewhere'; needed: 'target'",
        "the name in your certificate is not the one that was agreed on",
    ),
    "a target with a name that would match any": (
        tls(lambda holders: holders.source, "a.example"),
        tls(lambda holders: holders.everybody, "source"),
        "certificate: name is '*.example'; needed: 'a.example'",
        "the name in your certificate is not the one that was agreed on",
    ),
    "a source of another name": (
        tls(lambda holders: holders.elsewhere, "target"),
        GOOD_TARGET,
        "the name in your certificate is not the one that was agreed on",
        "certificate: name is 'elsewhere'; needed: 'source'",
    ),
    "a source whose certificate has expired": (
        tls(lambda holders: holders.expired, "target"),
        GOOD_TARGET,
        "certificate: our own is expired, says the peer",
        "certificate: the peer's is not accepted (certificate has expired)",
    ),
    "a source that wants TLS, and a target that does not": (
        GOOD_SOURCE,
        in_the_clear,
        "the peer does not speak TLS: it sent b'\\x89MIG\\r\\n\\x1a\\n', which is this protocol without TLS",
        "does not speak this protocol: it sent b'\\x15\\x03\\x03\\x00\\x02\\x02\\n', which is TLS; only one of both",
    ),
    "a target that wants TLS, and a source that does not": (
        in_the_clear,
        GOOD_TARGET,
        "does not speak this protocol: it sent b'\\x16\\x03\\x01",
        "the peer hung up in the TLS handshake; it may be a source without TLS",
    ),
}


@pytest.mark.parametrize("mismatch", MISMATCHES.values(), ids=MISMATCHES)
async def test_who_does_not_accept_the_other_says_why_and_both_hear_it(
    neighbourhood: Neighbourhood, holders: Holders, mismatch: tuple[Chosen, Chosen, str, str]
) -> None:
    of_source, of_target, source_says, target_says = mismatch
    source = await neighbourhood.source(access=of_source(holders))
    target = neighbourhood.target(source.port, access=of_target(holders))
    with trio.fail_after(20):
        assert await target.daemon.migrate_in() is None
    await until(lambda: source.told_of("turned away"))
    (told,) = source.told_of("turned away")
    assert source_says in told.event["error"]
    assert target_says in target.daemon.attempts[0].as_json()["error"]["message"]
    assert source.machine.state is MachineState.RUNNING
    assert source.daemon.attempts == [], "whoever is turned away at the door makes no attempt"
    assert target.hypervisor.kept == []


async def test_a_machine_migrates_over_tls_as_it_does_without(neighbourhood: Neighbourhood, holders: Holders) -> None:
    source = await neighbourhood.source(access=holders.access(Role.SOURCE))
    target = neighbourhood.target(source.port, access=holders.access(Role.TARGET))
    assert await target.daemon.migrate_in() is not None
    await assert_identical(source, target)
    assert [attempt.outcome for attempt in target.daemon.attempts] == [Outcome.MIGRATED]


async def test_a_refusal_of_ours_is_not_tried_again_and_is_no_failure(
    neighbourhood: Neighbourhood, holders: Holders
) -> None:
    source = await neighbourhood.source(access=GOOD_SOURCE(holders))
    target = neighbourhood.target(source.port, access=tls(lambda them: them.expired, "source")(holders), retries=3)
    assert await target.daemon.migrate_in() is None
    (attempt,) = target.daemon.attempts
    assert attempt.outcome is Outcome.REFUSED
    assert attempt.as_json()["error"]["side"] == Role.SOURCE


async def test_any_of_several_names_will_do(neighbourhood: Neighbourhood, holders: Holders) -> None:
    source = await neighbourhood.source(access=tls(lambda them: them.source, "TARGET", "another")(holders))
    target = neighbourhood.target(source.port, access=holders.access(Role.TARGET))
    assert await target.daemon.migrate_in() is not None


async def test_a_source_that_goes_silent_in_the_handshake_is_not_waited_for_for_ever(
    neighbourhood: Neighbourhood, holders: Holders, nursery: trio.Nursery
) -> None:
    async def say_nothing(stream: trio.SocketStream) -> None:
        async with stream:
            await trio.sleep_forever()

    listeners = await trio.open_tcp_listeners(0, host=LOOPBACK)
    nursery.start_soon(trio.serve_listeners, say_nothing, listeners)
    limits = Deadlines(handshake_s=0.1, farewell_s=0.1)
    target = neighbourhood.target(port_of(listeners), access=holders.access(Role.TARGET), deadlines=limits)
    with trio.fail_after(10):
        assert await target.daemon.migrate_in() is None
    assert "silent or too slow in the TLS handshake" in str(target.daemon.attempts[0].error)
    nursery.cancel_scope.cancel()


# Addresses


@pytest.mark.parametrize("address", ["10.0.0.1:4600", "0.0.0.0:4600", "[::]:4600", "example.com:4600"])
async def test_off_loopback_there_is_tls_or_a_word_for_it(holders: Holders, address: str) -> None:
    somewhere = Address.parse(address)
    with pytest.raises(BadInput, match=r"is not on loopback.*--tls-cert.*--insecure"):
        Access().check(somewhere)
    with pytest.raises(TransportLost, match="is not on loopback"):  # from a state directory, or a debt
        await Access().connect(somewhere, Deadlines())
    Access(insecure=True).check(somewhere)
    holders.access(Role.TARGET).check(somewhere)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.8.9.1:1", "[::1]:1", "localhost:1"])
def test_on_loopback_nothing_has_to_be_said(address: str) -> None:
    Access().check(Address.parse(address))


# Files

SECRET: Final = "do-not-tell-9d1c"


def files(holder: Holder, directory: Path) -> dict[str, Path]:
    """Copies, to be spoilt."""
    copies = {}
    for name, path in (("certificate", holder.certificate), ("key", holder.key), ("authorities", holder.authority)):
        copies[name] = directory / name
        copies[name].write_bytes(path.read_bytes())
    return copies


SPOILT: Final[dict[str, tuple[str, Callable[[bytes], bytes], str]]] = {
    "no certificate in the certificate": ("certificate", lambda _: SECRET.encode(), "expected a certificate and its"),
    "no key in the key": ("key", lambda _: SECRET.encode(), "expected a certificate and its private key"),
    "a damaged key": ("key", lambda data: data.replace(b"\nM", b"\n" + SECRET.encode()), "expected a certificate"),
    "the certificate as the key": ("key", lambda _: b"", "expected a certificate and its private key"),
    "nothing in the authorities": ("authorities", lambda _: b"", "no certificate of an authority in it"),
    "something else in the authorities": ("authorities", lambda _: SECRET.encode(), "no certificate of an authority"),
    "an encrypted key": (
        "key",
        lambda _: b"-----BEGIN ENCRYPTED PRIVATE KEY-----\n" + b"MIG" * 20 + b"\n-----END ENCRYPTED PRIVATE KEY-----\n",
        "expected a certificate and its private key",
    ),
}


@pytest.mark.parametrize("spoilt", SPOILT.values(), ids=SPOILT)
def test_files_that_are_no_use_are_named_and_not_quoted(
    holders: Holders, tmp_path: Path, spoilt: tuple[str, Callable[[bytes], bytes], str]
) -> None:
    name, spoil, says = spoilt
    copies = files(holders.source, tmp_path)
    copies[name].write_bytes(spoil(copies[name].read_bytes()))
    with pytest.raises(BadInput, match=says) as caught:
        Tls.load(*copies.values(), peers=["target"])
    assert str(copies[name]) in str(caught.value)
    assert SECRET not in str(caught.value)


def test_a_key_with_a_passphrase_is_not_asked_for_at_the_terminal(holders: Holders, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization

    copies = files(holders.source, tmp_path)
    key = serialization.load_pem_private_key(copies["key"].read_bytes(), None)
    encrypted = serialization.BestAvailableEncryption(SECRET.encode())
    copies["key"].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encrypted)
    )
    with pytest.raises(BadInput, match="the key is encrypted"):
        Tls.load(*copies.values(), peers=["target"])


def test_the_key_of_another_certificate_is_told_apart(holders: Holders) -> None:
    with pytest.raises(BadInput, match=r"target\.key: the key is not that of the certificate in .*source\.pem"):
        Tls.load(holders.source.certificate, holders.target.key, holders.source.authority, peers=["target"])


def test_a_file_that_is_not_there_is_named(holders: Holders, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"none\.pem: cannot be read: No such file"):
        Tls.load(tmp_path / "none.pem", holders.source.key, holders.source.authority, peers=["target"])


def test_what_tls_holds_is_not_in_its_repr(holders: Holders) -> None:
    assert repr(holders.source.tls("Target")) == "Tls(peers=frozenset({'target'}))"


# Throw-away certificates


def test_throw_away_certificates_are_for_each_other_and_their_keys_for_nobody_else(tmp_path: Path) -> None:
    sides = write_throw_away(tmp_path / "new", days=1)
    assert sides == paths_of(tmp_path / "new")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "ca.pem",
        "source.key",
        "source.pem",
        "target.key",
        "target.pem",
    ]
    for side in sides.values():
        assert stat.S_IMODE(side.key.stat().st_mode) == 0o600
        Tls.load(side.certificate, side.key, side.authority, peers=[side.peer])


def test_two_makings_do_not_trust_each_other(tmp_path: Path) -> None:
    pems = [write_throw_away(tmp_path / name, days=1)[Role.SOURCE].authority.read_bytes() for name in ("a", "b")]
    assert pems[0] != pems[1]


@pytest.mark.parametrize("there", ["ca.pem", "source.key", "target.pem"])
def test_nothing_is_overwritten_and_nothing_half_written(tmp_path: Path, there: str) -> None:
    (tmp_path / there).write_text("mine")
    with pytest.raises(CertificatesThere, match=there):
        write_throw_away(tmp_path, days=1)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(there, "mine")]


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "source.key").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CertificatesThere, match=r"source\.key"):
        write_throw_away(tmp_path, days=1)
    assert not (tmp_path / "elsewhere").exists()
