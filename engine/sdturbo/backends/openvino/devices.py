"""OpenVINO's devices as this backend offers them. Another device is another row of `DEVICES`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """A precision that float32 graphs are computed in. hint: OpenVINO's name of it, for INFERENCE_PRECISION_HINT.

    capability: the entry of OPTIMIZATION_CAPABILITIES that a device needs, None if every device has the arithmetic.
    lacking: the words of a refusal by a device without it.
    """

    precision: str
    hint: str
    capability: str | None = None
    lacking: str = ""


@dataclass(frozen=True, slots=True)
class Device:
    """A device by our name and by OpenVINO's.

    arithmetics: the fastest first, the last without a capability. int8 graphs compute the layers that they leave in float32 in
    the fastest that the device has. threads_property: the property for the number of CPU threads, if there is one.
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
