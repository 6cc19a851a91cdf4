"""Pictures in and out: images of a caller as pixels, masks, feedback, frames of cameras, files that say how they were made."""

from sdturbo.image.credentials import ContentCredentials
from sdturbo.image.feedback import feedback
from sdturbo.image.mask import Mask, of_alpha, put_back, reduced, to_mask
from sdturbo.image.numbers import as_number
from sdturbo.image.pixels import MAX_PIXELS, ImageInput, read_image, to_pixels
from sdturbo.image.provenance import ITXT, MarkedImage
from sdturbo.image.similar import SimilarFrames
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
    "ITXT",
    "MAX_PIXELS",
    "QUALITY",
    "SUFFIXES",
    "ContentCredentials",
    "Format",
    "ImageInput",
    "MarkedImage",
    "Mask",
    "SimilarFrames",
    "as_number",
    "feedback",
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
