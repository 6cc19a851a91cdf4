"""The picture in a bundle that a pipeline must draw again before its pictures are trusted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sdturbo.bundle.description import golden_image
from sdturbo.errors import BundleError

if TYPE_CHECKING:
    from sdturbo.pipeline import Pipeline


def golden_distance(pipe: Pipeline) -> float:
    """PSNR (peak signal-to-noise ratio) in dB between the bundle's golden picture and that of `pipe`, the worst of all sizes.

    Raises OutputError if the pipeline draws no picture, BundleError if the golden file holds none.
    """
    bundle, distances = pipe.bundle, list[float]()
    for height, width in bundle.sizes:
        golden, is_default = bundle.golden, (height, width) == bundle.sizes[0]
        file = golden.image if is_default else golden_image(golden.image, height, width)
        result = pipe(
            golden.prompt,
            height=height,
            width=width,
            seed=golden.seed,
            num_inference_steps=golden.num_inference_steps,
            output_type="np",
        )
        try:
            with Image.open(bundle.path / file) as image:
                expected = np.asarray(image.convert("RGB").resize((width, height)))
        except Exception as error:  # Pillow's decoders raise many kinds
            raise BundleError(bundle.path, [f"{file} is no picture: {error}"]) from error
        distances.append(difference(result.images[0], expected)[0])
    return min(distances)


def difference(drawn: NDArray[np.uint8], expected: NDArray[np.uint8]) -> tuple[float, int]:
    """(PSNR in dB, largest difference of a value) between two uint8 pictures of one shape."""
    off = drawn.astype(np.int64) - expected
    error = float(np.mean(off**2))
    return (float("inf") if error == 0 else float(10 * np.log10(255**2 / error))), int(np.abs(off).max())
