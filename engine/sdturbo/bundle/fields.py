"""JSON objects read field by field. Each value has the expected type, and every fault is noted. Standard library only."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

Json = dict[str, Any]
NUMBER = (int, float)
# annotation of a dataclass's field -> (kind in JSON, value in the place of a faulty one)
_KINDS: dict[str, Any] = {
    "str": (str, ""),
    "int": (int, 0),
    "float": (NUMBER, 0.0),
    "float | None": ((*NUMBER, type(None)), None),
    "bool": (bool, False),
}


class Fields:
    """Typed access to a JSON object. It notes all faults in `faults` and does not stop at the first."""

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
        actual = "missing" if key not in self.data else f"{value!r:.60}"
        expected = "number" if isinstance(kind, tuple) else "object" if kind is dict else kind.__name__
        self.faults.append(f"{self.where}: {key} is {actual}, expected {expected}")
        return default

    def optional(self, key: str, kind: type | tuple[type, ...], default: Any) -> Any:
        """As `get`, but a missing key is no fault."""
        return self.get(key, kind, default) if key in self.data else default

    def read(self, kind: Any) -> Json:
        """The fields of the dataclass `kind`, each of its type. Those with a default may be missing."""
        values: Json = {}
        for field in dataclasses.fields(kind):
            json_kind, empty = _KINDS.get(str(field.type), (dict, {}))  # another dataclass is an object
            if field.default is dataclasses.MISSING:
                values[field.name] = self.get(field.name, json_kind, empty)
            else:
                values[field.name] = self.optional(field.name, json_kind, field.default)
        return values


def is_count(value: Any) -> bool:
    """Whether it is a whole number from 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
