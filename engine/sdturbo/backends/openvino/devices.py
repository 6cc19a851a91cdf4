"""OpenVINO's devices as this backend offers them. Another device is another row of `DEVICES`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """A precision that float32 graphs are computed in.

    hint: OpenVINO's name of it, for INFERENCE_PRECISION_HINT. capability: what the device's OPTIMIZATION_CAPABILITIES must
    list, None if every such device has it. lacking: the words for a device that does not.
    """

    precision: str
    hint: str
    capability: str | None = None
    lacking: str = ""


@dataclass(frozen=True, slots=True)
class Device:
    """A device by our name and by OpenVINO's.

    arithmetics: the fastest first, the last without a capability. Graphs in int8 compute what they leave in float32 in the
    fastest that the device has.
    threads_property: the property that takes the number of CPU threads, None if there is none.
    """

    name: str
    openvino_name: str
    arithmetics: tuple[Arithmetic, ...]
    threads_property: str | None = None

    def available(self, capabilities: Sequence[str]) -> list[Arithmetic]:
        """The arithmetics that a device with these capabilities has, the fastest first."""
        known = {None, *capabilities}
        return [arithmetic for arithmetic in self.arithmetics if arithmetic.capability in known]


DEVICES = (
    Device(
        "cpu",
        "CPU",
        (
            Arithmetic("bf16", "bf16", "BF16", "This CPU has no bf16 instructions (avx512_bf16 or AMX)"),
            Arithmetic("fp32", "f32"),
        ),
        threads_property="INFERENCE_NUM_THREADS",
    ),
)
