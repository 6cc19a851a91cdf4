"""An untrained model of the embedded one's shape, and its checkpoint."""

from __future__ import annotations

import pytest
import torch

from training.tiny import train_vae
from training.tiny.checkpoint_writer import write_checkpoint
from training.tiny.model import new_model
from training.tiny.prompts import Prompts


@pytest.fixture(scope="session")
def prompts():
    return Prompts()


@pytest.fixture(scope="session")
def model(prompts):
    torch.manual_seed(0)
    return new_model(prompts.known)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory, model):
    torch.manual_seed(0)
    modules = {"text_encoder": model.text_encoder, "unet": model.unet, "vae": train_vae.new_vae()}
    return write_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny", modules, results="| a | 1 |")
