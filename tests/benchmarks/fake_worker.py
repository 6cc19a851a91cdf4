"""A peer for tests: refuses, dies or sleeps as its first argument says."""

import os
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.append(str(Path(__file__).parents[2] / "benchmarks" / "peers"))
from lines import answer_lines


class Fake:
    def prepare(self, request):
        Path(request["model"]).mkdir(parents=True)

    def load(self, request):
        print("noise of a library")
        os.system("echo noise of another process")
        if sys.argv[1] == "refuses":
            raise KeyError("no such weight")
        if sys.argv[1] == "dies":
            os._exit(3)

    def draw(self, prompt, seed, steps):
        time.sleep(60 if sys.argv[1] == "sleeps" else 0.01)
        return Image.fromarray(np.full((64, 64, 3), seed, np.uint8))


answer_lines(Fake())
