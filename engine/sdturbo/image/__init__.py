"""Pictures in and out: images of a caller as pixels, masks of inpainting, and files that say how their picture was made."""

from sdturbo.image.mask import Mask, of_alpha, put_back, reduced, to_mask
from sdturbo.image.pixels import MAX_PIXELS, ImageInput, read_image, to_pixels
from sdturbo.image.writing import (
    QUALITY,
    SUFFIXES,
    Format,
    format_of,
    parameters_of,
    save_image,
    save_png,
    write_image,
)

__all__ = [
    "MAX_PIXELS",
    "QUALITY",
    "SUFFIXES",
    "Format",
    "ImageInput",
    "Mask",
    "format_of",
    "of_alpha",
    "parameters_of",
    "put_back",
    "read_image",
    "reduced",
    "save_image",
    "save_png",
    "to_mask",
    "to_pixels",
    "write_image",
]
