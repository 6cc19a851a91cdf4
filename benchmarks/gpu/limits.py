"""The limits of the GPU acceptance: the goals for each card, and what is judged where a card has none of its own."""

from __future__ import annotations

import re

# An H200 computes as an H100 does, and has more and faster memory.
# ms for a whole request from prompt to pixels: fp16, one picture, one step, the full-size model
LATENCY = {
    "tensorrt": {"H100": 12.0, "H200": 12.0, "A100": 22.0, "RTX 4090": 28.0, "T4": 100.0},
    "cuda": {"H100": 20.0, "H200": 20.0},
}
ANY_CARD = 100.0  # ms: promised for every card that TensorRT supports
# ms for text encoder, UNet and decoder, batch 1: per operator the greater of arithmetic and memory traffic, ideal fusion
ROOFLINES = {"H100": 3.95, "A100": 11.3, "RTX 4090": 21.5, "T4": 56.0}
FULL_SIZE = 2e9  # bytes of graphs and weights: the limits are for the full-size model
MEMORY = 4.5e9  # bytes of the GPU at most at any time from load to picture, batch size 1, fp16
LOAD = 5.0  # s from plans in fp16, batch size 1
GROWTH = 16e6  # bytes that 1,000 requests may add to the GPU's memory
HOST_GROWTH = 64e6  # bytes that they may add to the process's


def latency_limit(backend: str, card: str) -> tuple[float, str]:
    """(ms, words about it) for a backend on a card, by the card's name as CUDA gives it."""
    own = known(LATENCY.get(backend, {}), card)
    if own is not None:
        return own, f"median <= {own:.0f} ms"
    return ANY_CARD, f"median <= {ANY_CARD:.0f} ms, for {backend} has no limit of its own on this card"


def known(table: dict[str, float], card: str) -> float | None:
    """The entry of the card, None if it has none."""
    return next((value for key, value in table.items() if re.search(rf"\b{key}\b", card)), None)
