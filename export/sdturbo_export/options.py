"""The options of a build, checked once and passed on whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sdturbo.bundle.description import WEIGHT_FORMATS, Size
from sdturbo.errors import InvalidRequest
from sdturbo_export.rewrites import require_known, rewrites_of

PRECISIONS = ("fp32", "fp16", "int8")
DEFAULT_SIZE: Size = (512, 512)  # what SD-Turbo was trained for
SIDES, SIDE_STEP, MOST_PIXELS = (256, 1024), 64, 768 * 768


def check_size(height: int, width: int) -> None:
    """Raises InvalidRequest unless SD-Turbo draws pictures of that size."""
    least, most = SIDES
    sides_fit = all(least <= side <= most and side % SIDE_STEP == 0 for side in (height, width))
    if not sides_fit or height * width > MOST_PIXELS:
        raise InvalidRequest(
            f"Got the size {width}x{height} (width x height). Expected multiples of {SIDE_STEP} from {least} to {most}, and at"
            f" most {MOST_PIXELS} pixels, as 768x768 has."
        )


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """What a bundle shall hold.

    batch_sizes: those of its graphs, which are static. They are kept in order, each once.
    sizes: (height, width) of its pictures in pixels. The first is the default.
    precision: "fp32", "fp16" for NVIDIA GPUs, or "int8" for denoiser and decoder on CPUs (see `int8`).
    weight_format: how fp32 graphs store their weights. "fp16" rounds them and takes 2 bytes per weight instead of 4. The
    arithmetic stays float32 or bfloat16. Weights that float16 holds exactly are stored in it either way.
    without: names of rewrites to leave out.
    calibration, allow_low_quality: for int8. A file of prompts, and consent to pictures below the limit.
    Raises InvalidRequest for options of which no bundle can be made.
    """

    batch_sizes: Sequence[int] = (1,)
    sizes: Sequence[Size] = (DEFAULT_SIZE,)
    precision: str = "fp32"
    weight_format: str = "fp32"
    without: Sequence[str] = ()
    calibration: Path | None = None
    allow_low_quality: bool = False

    def __post_init__(self) -> None:
        sizes, precision = list(self.batch_sizes), self.precision
        if not sizes or any(size < 1 for size in sizes):
            raise InvalidRequest(f"Got batch sizes {sizes}. Expected whole numbers from 1.")
        if not self.sizes or len(set(self.sizes)) < len(self.sizes):
            raise InvalidRequest(f"Got the sizes {list(self.sizes)}. Expected one or more, each once.")
        for height, width in self.sizes:
            check_size(height, width)
        if precision not in PRECISIONS:
            raise InvalidRequest(f"Got precision {precision!r}. Expected {' or '.join(PRECISIONS)}.")
        if self.weight_format not in WEIGHT_FORMATS:
            raise InvalidRequest(f"Got weight format {self.weight_format!r}. Expected {' or '.join(WEIGHT_FORMATS)}.")
        if self.weight_format == "fp16" and precision != "fp32":
            raise InvalidRequest(
                f"Got weight format fp16 with precision {precision}, whose graphs have weights of their own."
                " The format is for precision fp32."
            )
        if precision == "int8" and 1 not in sizes:
            raise InvalidRequest(f"Got batch sizes {sizes}. int8 is measured at batch size 1: add it to them.")
        if precision != "int8" and (self.calibration is not None or self.allow_low_quality):
            raise InvalidRequest(
                f"Got calibration prompts or allow_low_quality with precision {precision}. They are for precision int8."
            )
        require_known(self.without)
        object.__setattr__(self, "batch_sizes", tuple(sorted(set(sizes))))

    @property
    def exported_precision(self) -> str:
        """The precision in which stages are exported. int8 is made from fp32."""
        return "fp32" if self.precision == "int8" else self.precision

    def rewrites(self, stage: str) -> tuple[str, ...]:
        """Names of the rewrites that the stage gets."""
        return rewrites_of(stage, self.exported_precision, self.without)
