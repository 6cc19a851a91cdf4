"""Renders on disk: picture i of a folder always shows scene i, so that a longer file only adds pictures.

Background processes paint them while training already reads those that are there.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from threading import Thread

import numpy as np
from numpy.typing import NDArray

from training.tiny.layout import CHANNELS, GRID
from training.tiny.render import render
from training.tiny.scenes import HELD_OUT, TRAINING, Combination, Scene

SIZE = 512
PICTURE = SIZE * SIZE * 3  # bytes


@dataclass(frozen=True, slots=True)
class Renders:
    """A file of uint8 pictures (n, 512, 512, 3), one after the other. It may still be growing."""

    path: Path
    held_out: bool = False

    def __len__(self) -> int:
        return self.path.stat().st_size // PICTURE if self.path.exists() else 0

    def picture(self, i: int) -> NDArray[np.uint8]:
        """Picture i, (512, 512, 3), read from disk."""
        return np.fromfile(self.path, np.uint8, PICTURE, offset=i * PICTURE).reshape(SIZE, SIZE, 3)

    def scene(self, i: int) -> Scene:
        """What picture i shows."""
        return numbered_scene(i, held_out=self.held_out)

    def paint(self, count: int) -> None:
        """Append pictures until there are `count`. A last picture that an interruption cut off is painted again."""
        done = len(self)
        with self.path.open("ab") as file:
            file.truncate(done * PICTURE)
            for i in range(done, count):
                file.write(_painted(self, i))
                file.flush()

    def paint_in_background(self, count: int) -> Thread:
        """`paint_by_all` beside the caller's work. It ends with this process."""
        thread = Thread(target=self.paint_by_all, args=(count,), daemon=True)
        thread.start()
        return thread

    def paint_by_all(self, count: int) -> None:
        """`paint` by processes on all cores, which give way to others."""
        done = len(self)
        if done >= count:
            return
        with get_context("spawn").Pool(initializer=os.nice, initargs=(5,)) as pool, self.path.open("ab") as file:
            file.truncate(done * PICTURE)
            for picture in pool.imap(partial(_painted, self), range(done, count)):
                file.write(picture)
                file.flush()


def numbered_scene(number: int, *, held_out: bool = False) -> Scene:
    """Scene `number` of an endless series: all combinations of one part in turn, in another order each round."""
    combinations = HELD_OUT if held_out else TRAINING
    lap, place = divmod(number, len(combinations))
    order = np.random.default_rng((lap, held_out)).permutation(len(combinations))
    layout = np.random.default_rng((number, held_out, 1)).standard_normal((GRID, GRID, CHANNELS), np.float32)
    return Scene(*combinations[int(order[place])], layout)


def combination(scene: Scene) -> Combination:
    return Combination(scene.subject, scene.colour, scene.scene)


def _painted(renders: Renders, i: int) -> bytes:
    return render(renders.scene(i), SIZE).tobytes()
