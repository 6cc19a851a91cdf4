"""The captions that int8 and the benchmarks draw, as text files: `python -m training.tiny.caption_lists OUT`.

The files are in the wheel, the grammar that made them is not.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from training.tiny.captions import plain_caption
from training.tiny.scenes import HELD_OUT, TRAINING

LISTS = {"training_captions.txt": TRAINING, "held_out_captions.txt": HELD_OUT}


def write_caption_lists(folder: Path) -> list[Path]:
    """Write the plain caption of every combination, one per line, in the order of `scenes`, and return the files."""
    for name, combinations in LISTS.items():
        lines = "".join(f"{plain_caption(what)}\n" for what in combinations)
        (folder / name).write_text(lines, encoding="utf-8", newline="\n")
    return [folder / name for name in LISTS]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="the exporter's folder of the embedded model")
    print(*write_caption_lists(parser.parse_args(arguments).out))


if __name__ == "__main__":
    main()
