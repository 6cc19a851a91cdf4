"""Fine detail of pictures: the energy above a quarter of the sampling rate, which soft pictures lack."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

QUARTER = 0.25  # cycles per pixel


def fine_energy(picture: NDArray[np.uint8]) -> float:
    """Energy of the grey picture's frequencies of which one component or both are above a quarter of the sampling rate."""
    height, width, _ = picture.shape
    grey = picture.mean(axis=-1)
    spectrum = np.abs(np.fft.rfft2(grey)) ** 2
    down, across = np.abs(np.fft.fftfreq(height))[:, None], np.fft.rfftfreq(width)[None]
    return float(spectrum[np.maximum(down, across) > QUARTER].sum() / (height * width))
