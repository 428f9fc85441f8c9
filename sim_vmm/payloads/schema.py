"""The name of a payload: its kind and version."""

import attrs


@attrs.frozen
class Schema:
    """What a payload is an instance of."""

    kind: str
    version: int

    def __str__(self) -> str:
        return f"{self.kind} v{self.version}"
