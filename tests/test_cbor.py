"""One item of strict CBOR, or a CborError: what `migrate.cbor` writes and what it takes."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from migrate.cbor import DEPTH_MAX, DOCUMENT, CborError, decode, encode
from migrate.specs import BY_NUMBER
from tests.corpus import spec_named

#: Rows of RFC 8949, Appendix A, that plain data can say.
APPENDIX_A: list[tuple[Any, str]] = [
    (0, "00"),
    (1, "01"),
    (10, "0a"),
    (23, "17"),
    (24, "1818"),
    (25, "1819"),
    (100, "1864"),
    (1000, "1903e8"),
    (1000000, "1a000f4240"),
    (1000000000000, "1b000000e8d4a51000"),
    (18446744073709551615, "1bffffffffffffffff"),
    (-18446744073709551616, "3bffffffffffffffff"),
    (-1, "20"),
    (-10, "29"),
    (-100, "3863"),
    (-1000, "3903e7"),
    (False, "f4"),
    (True, "f5"),
    (None, "f6"),
    (b"", "40"),
    (b"\x01\x02\x03\x04", "4401020304"),
    ("", "60"),
    ("a", "6161"),
    ("IETF", "6449455446"),
    ('"\\', "62225c"),
    ("\u00fc", "62c3bc"),
    ("\u6c34", "63e6b0b4"),
    ("\U00010151", "64f0908591"),
    ([], "80"),
    ([1, 2, 3], "83010203"),
    ([1, [2, 3], [4, 5]], "8301820203820405"),
    (list(range(1, 26)), "98190102030405060708090a0b0c0d0e0f101112131415161718181819"),
    ({}, "a0"),
    ({"a": 1, "b": [2, 3]}, "a26161016162820203"),
    (["a", {"b": "c"}], "826161a161626163"),
    ({"a": "A", "b": "B", "c": "C", "d": "D", "e": "E"}, "a56161614161626142616361436164614461656145"),
]


@pytest.mark.parametrize(("plain", "encoded"), APPENDIX_A, ids=[row[1][:20] for row in APPENDIX_A])
def test_plain_data_is_written_and_read_as_the_rfc_has_it(plain: Any, encoded: str) -> None:
    assert encode(plain).hex() == encoded
    assert decode(bytes.fromhex(encoded)) == plain
    assert type(decode(bytes.fromhex(encoded))) is type(plain)


def test_map_keys_are_written_in_the_order_of_their_encoded_bytes() -> None:
    shuffled = {"b": 1, "aa": 2, "": 3, "a": 4, "\u00fc": 5, "z" * 24: 6}
    keys = ["60", "6161", "6162", "626161", "62c3bc", "7818" + "7a" * 24]
    values = ["03", "04", "01", "02", "05", "06"]
    assert encode(shuffled).hex() == "a6" + "".join(key + value for key, value in zip(keys, values, strict=True))


def test_map_keys_are_read_in_any_order_and_kept_in_it() -> None:
    assert list(decode(bytes.fromhex("a2616201616102"))) == ["b", "a"]


REFUSED: list[tuple[str, str, str]] = [
    ("nothing at all", "", "ends inside an item"),
    # tags
    ("a date", "c074323031332d30332d32315432303a30343a30305a", "tags"),
    ("a bignum", "c249010000000000000000", "tags"),
    ("a decimal fraction", "c48221196ab3", "tags"),
    ("a regular expression", "d8236161", "tags"),
    ("a shared reference", "d81c80", "tags"),
    ("self-described CBOR", "d9d9f700", "tags"),
    ("a tag inside a map", "a16161c000", "tags"),
    # indefinite lengths
    ("indefinite bytes", "5f42010243030405ff", "indefinite"),
    ("indefinite text", "7f657374726561646d696e67ff", "indefinite"),
    ("an indefinite list", "9f01ff", "indefinite"),
    ("an indefinite map", "bf616101ff", "indefinite"),
    ("a break on its own", "ff", "floats or other simple"),
    # floats and simple values
    ("a half", "f93e00", "floats"),
    ("a single", "fa47c35000", "floats"),
    ("a double", "fb3ff199999999999a", "floats"),
    ("NaN", "f97e00", "floats"),
    ("infinity", "f97c00", "floats"),
    ("undefined", "f7", "simple values"),
    ("an unassigned simple value", "f0", "simple values"),
    ("a long simple value", "f8ff", "simple values"),
    ("false in two bytes", "f814", "simple values"),
    # reserved additional information
    ("reserved 28", "1c", "indefinite"),
    ("reserved 29", "5d", "indefinite"),
    ("reserved 30", "9e", "indefinite"),
    ("an integer of indefinite length", "1f", "indefinite"),
    # longer than need be
    ("0 in two bytes", "1800", "shortest"),
    ("23 in two bytes", "1817", "shortest"),
    ("255 in three bytes", "1900ff", "shortest"),
    ("65535 in five bytes", "1a0000ffff", "shortest"),
    ("2^32-1 in nine bytes", "1b00000000ffffffff", "shortest"),
    ("-1 in two bytes", "3800", "shortest"),
    ("a string length in two bytes", "780161", "shortest"),
    ("a byte string length in three bytes", "59000100", "shortest"),
    ("a list length in two bytes", "980100", "shortest"),
    ("a map length in two bytes", "b80160f6", "shortest"),
    # more, or less, than one item
    ("a second item", "0000", "1 bytes follow"),
    ("trailing bytes after a list", "8100ffff", "2 bytes follow"),
    ("half a head", "19", "ends inside an item"),
    ("a string cut short", "6261", "ends inside an item"),
    ("a list cut short", "8201", "ends inside an item"),
    ("a map without its last value", "a16161", "ends inside an item"),
    ("a string longer than any memory", "5bffffffffffffffff", "ends inside an item"),
    ("a list longer than any memory", "9bffffffffffffffff", "ends inside an item"),
    ("a map longer than any memory", "bbffffffffffffffff", "ends inside an item"),
    # map keys
    ("a key twice", "a2616101616102", "uplicate"),
    ("a key twice, apart", "a3616101616202616103", "uplicate"),
    ("integer keys", "a10102", "map key"),
    ("null as a key", "a1f600", "map key"),
    ("1 and true as keys", "a20100f500", "map key"),
    ("a list as a key", "a18000", "map key"),
    ("a map as a key", "a1a000", "map key"),
    # text
    ("text that is not UTF-8", "61ff", "utf-8"),
    ("a surrogate in text", "63eda080", "utf-8"),
    ("an overlong NUL", "62c080", "utf-8"),
]


@pytest.mark.parametrize(("encoded", "problem"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_anything_else_is_refused(encoded: str, problem: str) -> None:
    with pytest.raises(CborError) as caught:
        decode(bytes.fromhex(encoded))
    assert problem in str(caught.value)
    assert 0 <= caught.value.offset <= len(encoded) // 2
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("opening", ["81", "a160"], ids=["lists", "maps"])
def test_sixteen_levels_are_read_and_the_seventeenth_is_refused(opening: str) -> None:
    assert DEPTH_MAX == 16
    deep = decode(bytes.fromhex(opening * 16 + "00"))
    for _ in range(16):
        deep = deep[0] if isinstance(deep, list) else deep[""]
    assert deep == 0
    for depth in (17, 18, 100_000):
        with pytest.raises(CborError, match="nested more than 16 levels") as caught:
            decode(bytes.fromhex(opening * depth + "00"))
        assert caught.value.offset <= 17 * len(opening)


def test_an_empty_container_counts_as_a_level_too() -> None:
    assert decode(bytes.fromhex("81" * 15 + "80"))
    with pytest.raises(CborError, match="nested"):
        decode(bytes.fromhex("81" * 16 + "80"))


ITEMS_MAX = DOCUMENT.items


def test_the_item_budget_holds_for_lists_maps_and_nests() -> None:
    full = ITEMS_MAX - 1  # the list itself is an item
    assert len(decode(b"\x99" + full.to_bytes(2, "big") + b"\x00" * full)) == full
    for too_many in (
        b"\x99" + ITEMS_MAX.to_bytes(2, "big") + b"\x00" * ITEMS_MAX,
        b"\x9a" + (10**6).to_bytes(4, "big") + b"\x80" * 10**6,
        b"\xb9" + ITEMS_MAX.to_bytes(2, "big") + b"\x60\x00" * ITEMS_MAX,
        b"\x99" + (full - 1).to_bytes(2, "big") + b"\x81\x00" * (full - 1),
    ):
        with pytest.raises(CborError, match=f"more than {ITEMS_MAX} items"):
            decode(too_many)


def sample() -> bytes:
    return encode({**BY_NUMBER[6].encode(spec_named("v6-minimal")), "bytes": [b"\x00" * 300, -70000, 2**40, True]})


def test_every_truncation_of_a_document_is_refused() -> None:
    data = sample()
    assert decode(data)
    for length in range(len(data)):
        with pytest.raises(CborError, match="ends inside"):
            decode(data[:length])


def test_every_flipped_bit_is_read_or_refused_and_never_crashes() -> None:
    data = sample()
    for position in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[position // 8] ^= 1 << position % 8
        try:
            plain = decode(bytes(flipped))
        except CborError:
            continue
        assert decode(encode(plain)) == plain


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**64), 2**64 - 1) | st.binary(max_size=300) | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=30) | st.dictionaries(st.text(max_size=30), inner, max_size=8),
    max_leaves=40,
)


def depth(plain: Any) -> int:
    if isinstance(plain, dict):
        plain = list(plain.values())
    return 1 + max(map(depth, plain), default=0) if isinstance(plain, list) else 0


@given(PLAIN)
def test_plain_data_comes_back_and_is_always_written_alike(plain: Any) -> None:
    if depth(plain) <= DEPTH_MAX:
        data = encode(plain)
        assert decode(data) == plain
        assert encode(decode(data)) == data


@settings(max_examples=500)
@given(st.binary(max_size=200))
def test_random_bytes_raise_nothing_but_cbor_errors(data: bytes) -> None:
    try:
        plain = decode(data)
    except CborError:
        return
    assert len(encode(plain)) == len(data), "what is read has only one length"


@settings(max_examples=200)
@given(st.binary(max_size=80), st.data())
def test_a_document_with_random_bytes_inside_raises_nothing_but_cbor_errors(noise: bytes, data: st.DataObject) -> None:
    document = sample()
    start = data.draw(st.integers(0, len(document)))
    try:
        decode(document[:start] + noise + document[start + len(noise) :])
    except CborError as error:
        assert len(str(error)) < 200  # noqa: PT017  there may be no error
