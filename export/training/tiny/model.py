"""UNet and text encoder, which are trained together, with embeddings for the captions' words only."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from sdturbo_export.weights.checkpoint import open_checkpoint
from training.tiny.configs import tiny_configs

WORD_DEVIATION = 0.3  # of fresh embeddings: words differ more than places in the prompt


class Model(nn.Module):
    """`unet` and `text_encoder`. Their weights are saved under these names."""

    def __init__(self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.unet, self.text_encoder = unet, text_encoder

    def embeds(self, ids: Tensor) -> Tensor:
        """int64 (n, 77) -> float32 (n, 77, 64)."""
        return self.text_encoder(ids).last_hidden_state.float()

    @property
    def words(self) -> Tensor:
        """The embeddings of all tokens, (49408, 64)."""
        return self.text_encoder.get_input_embeddings().get_parameter("weight")


def new_model(known: NDArray[np.int64]) -> Model:
    """Random weights. Embeddings of ids that are not `known` are zero and stay so."""
    config = tiny_configs()
    unet = UNet2DConditionModel.from_config(config["unet"]).to(memory_format=torch.channels_last)
    model = Model(unet, CLIPTextModel(CLIPTextConfig(**config["text_encoder"])))
    learnt = torch.zeros(len(model.words), 1)
    learnt[torch.from_numpy(known)] = 1
    with torch.no_grad():
        model.words.normal_(std=WORD_DEVIATION).mul_(learnt)
    _learn_only(model.words, learnt)
    return model


def take_unet(model: Model, checkpoint: Path) -> None:
    """Put the trained UNet of a checkpoint in, to be trained further."""
    trained = open_checkpoint(checkpoint).module("unet")
    model.unet.load_state_dict({name: value.float() for name, value in trained.state_dict().items()})


def take_text_encoder(model: Model, checkpoint: Path, new: Tensor) -> None:
    """Put the trained text encoder of a checkpoint in. Only the embeddings of `new` ids are learnt further.

    new: int64 (n, 2), pairs of an id and the id whose embedding it begins with. -1: it begins with zeros, which the encoder
    ignores, as it does those of strange words.
    """
    trained = open_checkpoint(checkpoint).module("text_encoder")
    model.text_encoder.load_state_dict({name: value.float() for name, value in trained.state_dict().items()})
    model.text_encoder.requires_grad_(requires_grad=False)
    learnt = torch.zeros(len(model.words), 1)
    learnt[new[:, 0]] = 1
    with torch.no_grad():
        like = new[:, 1:]
        model.words[new[:, 0]] = model.words[like[:, 0].clamp_min(0)] * (like >= 0)
    model.words.requires_grad_()
    _learn_only(model.words, learnt)


def _learn_only(words: Tensor, learnt: Tensor) -> None:
    """Keep rows of `words` as they are where `learnt`, (n, 1), is 0."""
    words.register_hook(lambda gradient: gradient * learnt.to(gradient.device))


def load_model(file: Path) -> Model:
    """The trained weights, for inference."""
    model = new_model(np.zeros(0, np.int64))
    model.load_state_dict(torch.load(file, weights_only=True))
    return model.eval().requires_grad_(requires_grad=False)


def load_vae(file: Path, device: torch.device | str = "cpu") -> AutoencoderKL:
    """The finished autoencoder, for inference."""
    vae = AutoencoderKL.from_config(tiny_configs()["vae"])
    vae.load_state_dict(torch.load(file, weights_only=True))
    cast("nn.Module", vae).to(device)  # in place
    return vae.to(memory_format=torch.channels_last).eval().requires_grad_(requires_grad=False)
