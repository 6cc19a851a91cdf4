"""JSON objects read field by field: each value of the type that is expected, every fault noted. Standard library only."""

from __future__ import annotations

from typing import Any, cast

Json = dict[str, Any]
NUMBER = (int, float)


class Fields:
    """Typed access to a JSON object that notes in `faults` what is wrong instead of stopping at it."""

    def __init__(self, data: Any, where: str, faults: list[str]) -> None:
        self.data: Json = cast("Json", data) if isinstance(data, dict) else {}
        self.where = where
        self.faults = faults
        if not isinstance(data, dict):
            faults.append(f"{where} is {type(data).__name__}, expected an object")

    def get(self, key: str, kind: type | tuple[type, ...], default: Any) -> Any:
        """The value of `key` if it is of that kind, else `default` and a fault."""
        value = self.data.get(key)
        if isinstance(value, kind) and not (isinstance(value, bool) and kind is not bool):
            return value
        came = "missing" if key not in self.data else f"{value!r:.60}"
        expected = "number" if isinstance(kind, tuple) else "object" if kind is dict else kind.__name__
        self.faults.append(f"{self.where}: {key} is {came}, expected {expected}")
        return default

    def optional(self, key: str, kind: type | tuple[type, ...], default: Any) -> Any:
        """As `get`, but a missing key is no fault."""
        return self.get(key, kind, default) if key in self.data else default


def is_count(value: Any) -> bool:
    """Whether it is a whole number from 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
