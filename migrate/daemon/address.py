"""Where a daemon is found, as people type it."""

from ipaddress import ip_address

import attrs


class BadInput(Exception):
    """Something that was asked for cannot be: one clear line, exit code 2."""


@attrs.frozen(kw_only=True)
class Address:
    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> "Address":
        """`HOST:PORT`, an IPv6 address in brackets.

        Raises:
            BadInput: anything else.
        """
        host, colon, port = text.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 0xFFFF:
            raise BadInput(f"{text!r} is no address: expected HOST:PORT, such as 127.0.0.1:4600 or [::1]:4600")
        return cls(host=host, port=int(port))

    @property
    def is_loopback(self) -> bool:
        if self.host == "localhost":
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return False

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
