"""A peer for tests: refuses, dies or sleeps as its first argument says. Each load leaves a line in its cache."""

import os
import shutil
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.append(str(Path(__file__).parents[2] / "benchmarks" / "peers"))
from lines import answer_lines


class Fake:
    def prepare(self, request):
        shutil.copytree(request["base"] or request["checkpoint"], request["model"])

    def load(self, request):
        print("noise of a library")
        os.system("echo noise of another process")
        if sys.argv[1] == "refuses":
            raise KeyError("no such weight")
        if sys.argv[1] == "dies":
            os._exit(3)
        if request.get("cache"):
            with (Path(request["cache"]) / "loads").open("a") as file:
                file.write(f"{request.get('model')} {request['decoder']}\n")

    def draw(self, prompt, seed, steps):
        time.sleep(60 if sys.argv[1] == "sleeps" else 0.01)
        return Image.fromarray(np.full((64, 64, 3), seed, np.uint8))


answer_lines(Fake())
