"""A loop that draws a camera's newest image anew. Images that come while the engine is busy are skipped."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

from PIL import Image

from sdturbo import Pipeline


def redraw(pipeline: Pipeline, camera: Iterable[Image.Image], prompt: str) -> Iterator[tuple[int, Image.Image]]:
    """(number of the camera's image, the picture drawn from it), for the newest image each time the engine is free.

    The last image is always drawn. All pictures have the same seed, so that they do not flicker.
    """
    newest: list[tuple[int, Image.Image]] = []
    arrived, ended = threading.Condition(), threading.Event()

    def watch() -> None:
        for number, image in enumerate(camera):
            with arrived:
                newest[:] = [(number, image)]
                arrived.notify()
        with arrived:
            ended.set()
            arrived.notify()

    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(watch)
        while True:
            with arrived:
                arrived.wait_for(lambda: newest or watching.done() or ended.is_set())
                if not newest:
                    break
                number, image = newest.pop()
            yield number, pipeline(prompt, image, num_inference_steps=2, strength=0.5, seed=0).images[0]
        watching.result()  # raises the camera's error


def rising_sun(count: int, seconds: float) -> Iterator[Image.Image]:
    """An imitation of a camera: a disc that rises, one image every `seconds`."""
    disc = Image.new("RGB", (120, 120), "#f2b134")
    for i in range(count):
        image = Image.new("RGB", (512, 512), "#7fa8d8")
        image.paste(disc, (196, 400 - 300 * i // count))
        yield image
        time.sleep(seconds)


if __name__ == "__main__":
    for number, picture in redraw(Pipeline.load("build/sd-turbo"), rising_sun(30, 0.1), "a yellow house at night"):
        print(f"image {number} became {picture.size[0]}x{picture.size[1]} pixels")
