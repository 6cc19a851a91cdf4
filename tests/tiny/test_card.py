"""The checkpoint of a training, and its card."""

from __future__ import annotations

import inspect
import re
from importlib import import_module
from pathlib import Path

import pytest
import torch

import training.tiny
from sdturbo_export.weights.checkpoint import open_checkpoint
from sdturbo_export.weights.resolve import TINY_CHECKPOINT
from training.tiny.checkpoint_writer import card, half_tensors
from training.tiny.render import render


def test_the_checkpoint_opens_and_holds_what_was_trained(checkpoint, model):
    opened = open_checkpoint(checkpoint)
    assert opened.schedule.prediction_type == "sample"
    for name, value in opened.module("unet").state_dict().items():
        torch.testing.assert_close(value, model.unet.state_dict()[name], atol=1e-3, rtol=1e-3)
    assert {name.split(".")[0] for name in opened.state_dict("text_encoder")} == {"text_model"}


def test_the_card_names_every_word_and_figure(checkpoint):
    text = (checkpoint / "README.md").read_text()
    for word in ("mushroom", "toadstool", "crimson", "downtown", "| a | 1 |", "apache-2.0"):
        assert word in text
    assert "{" not in text
    assert "Apache License" in (checkpoint / "LICENSE.md").read_text()


def test_the_packaged_card_is_what_the_writer_writes():
    text = (TINY_CHECKPOINT / "README.md").read_text(encoding="utf-8")
    (figures,) = re.findall(r"^\| what \| figure \|\n\|---\|---\|\n((?:\|.*\n)+)", text, re.MULTILINE)
    assert card(figures) == text


def test_the_card_names_the_file_that_draws():
    (file,) = re.findall(r"`(export/\S+\.py)`", card())
    assert Path(__file__).parents[2].joinpath(file).samefile(inspect.getfile(render))


def test_make_runs_steps_that_exist_from_the_sources():
    makefile = Path(__file__).parents[2].joinpath("Makefile").read_text(encoding="utf-8")
    assert re.search(r"^TRAIN\s*:= PYTHONPATH=export \$\(BIN\)/python -m training\.tiny$", makefile, re.MULTILINE)
    steps = re.findall(r"\$\(TRAIN\)\.(\w+)", makefile)
    assert steps[:5] == ["train_vae", "train_unet", "train_decoder", "checkpoint_writer", "caption_lists"]
    for step in steps:
        assert callable(import_module(f"training.tiny.{step}").main)


def test_the_package_says_of_every_file_what_it_is_for():
    files = {file.stem for file in Path(training.tiny.__file__).parent.glob("*.py")} - {"__init__"}
    assert files == {name for name in re.findall(r"`(\w+)`", training.tiny.__doc__) if name in files}


def test_weights_beyond_float16_are_refused():
    layer = torch.nn.Linear(2, 2)
    with torch.no_grad():
        layer.weight[0, 0] = 1e6
    with pytest.raises(ValueError, match="weight does not fit float16"):
        half_tensors("unet", layer)
