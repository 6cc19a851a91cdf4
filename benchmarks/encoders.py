"""The cost of encoding a picture: PNG by Pillow and by ISA-L with each of PNG's simple filters, JPEG and WebP.

The pictures are the embedded model's, and the same with film grain, which compresses worse. Measured is the CPU time of the
thread that encodes, so that other programs weigh little. Prints a table, and one JSON document as its last line.

    python -m benchmarks.encoders
"""

from __future__ import annotations

import argparse
import io
import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any, get_args

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray
from PIL import Image

from benchmarks.markdown import ms, table
from sdturbo import Pipeline
from sdturbo.bundle import EMBEDDED
from sdturbo.commands.doctor import report as machine
from sdturbo.image import QUALITY
from sdturbo_serve.encoding import Format, encode

PROMPTS = ("a red house by a lake under a blue sky", "a green tree in the snow at night")
GRAIN = 4.0  # standard deviation, of 255
SETS = ("plain", "grain")
FILTERS = ("none", "sub", "up")  # PNG's types 0 to 2. Paeth alone costs more than all the rest.

Encoder = Callable[[Image.Image], bytes]


def filtered(pixels: NDArray[np.uint8], kind: str) -> NDArray[np.uint8]:
    """uint8 (H, W, 3) as PNG's rows (H, 1 + 3·W), each after its filter's type."""
    flat = pixels.reshape(len(pixels), -1)
    before = np.zeros_like(flat)
    if kind == "sub":
        before[:, 3:] = flat[:, :-3]
    if kind == "up":
        before[1:] = flat[:-1]
    rows = np.empty((len(flat), 1 + flat.shape[1]), np.uint8)
    rows[:, 0] = FILTERS.index(kind)
    np.subtract(flat, before, out=rows[:, 1:])
    return rows


def encoders() -> dict[str, Encoder]:
    """Every way that is compared. ISA-L's rows are deflate alone, without the file around it."""

    def pillow(picture: Image.Image, name: str, **options: Any) -> bytes:
        file = io.BytesIO()
        picture.save(file, name, **options)
        return file.getvalue()

    def isal(picture: Image.Image, kind: str, level: int) -> bytes:
        return isal_zlib.compress(filtered(np.asarray(picture, np.uint8), kind), level)

    ways: dict[str, Encoder] = {
        f"the server's {name}": partial(encode, output_format=name) for name in get_args(Format)
    }
    ways |= {f"Pillow png level {level}": partial(pillow, name="PNG", compress_level=level) for level in (0, 1, 3, 6)}
    ways |= {
        f"ISA-L level {level}, {kind}": partial(isal, kind=kind, level=level) for level in range(4) for kind in FILTERS
    }
    ways |= {
        f"Pillow webp method {method}": partial(pillow, name="WEBP", quality=QUALITY["webp"], method=method)
        for method in (2, 4)
    }
    return ways


def cost(encoder: Encoder, pictures: list[Image.Image], runs: int) -> dict[str, float]:
    """Median CPU milliseconds per picture, and mean kilobytes per file, over `pictures`."""
    times: list[float] = []
    for _ in range(runs + 1):
        for picture in pictures:
            start = time.thread_time()
            encoder(picture)
            times.append((time.thread_time() - start) * 1e3)
    size = float(np.mean([len(encoder(picture)) for picture in pictures]))
    return {"ms": float(np.median(times[len(pictures) :])), "kb": size / 1e3}


def grainy(picture: Image.Image, seed: int) -> Image.Image:
    pixels = np.asarray(picture, np.float64)
    noise = np.random.default_rng(seed).normal(0, GRAIN, pixels.shape)
    return Image.fromarray((pixels + noise).round().clip(0, 255).astype(np.uint8))


def measure(runs: int) -> dict[str, Any]:
    pipe = Pipeline.load(EMBEDDED, image_to_image=False)
    drawn = [pipe(prompt, seed=i).images[0] for i, prompt in enumerate(PROMPTS)]
    sets = dict(zip(SETS, (drawn, [grainy(picture, i) for i, picture in enumerate(drawn)]), strict=True))
    rows = [
        {"encoder": name} | {kind: cost(encoder, pictures, runs) for kind, pictures in sets.items()}
        for name, encoder in encoders().items()
    ]
    return {"machine": machine(), "runs": runs, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--runs", type=int, default=15, help="of each encoder and picture")
    document = measure(parser.parse_args().runs)
    lines = [
        [row["encoder"], *(text for kind in SETS for text in (ms(row[kind]["ms"]), f"{row[kind]['kb']:.0f}"))]
        for row in document["rows"]
    ]
    print(table(("encoder", *(f"{kind}, {unit}" for kind in SETS for unit in ("ms", "kB"))), lines))
    print(json.dumps(document))


if __name__ == "__main__":
    main()
