"""The decoder's last training: the UNet's latents and the pictures that they stand for, and a decoder that alone changes."""

import numpy as np
import torch

from training.tiny import train_decoder, train_vae
from training.tiny.model import new_model
from training.tiny.pixels import to_pictures
from training.tiny.prompts import Prompts
from training.tiny.render import render
from training.tiny.renders import Renders, numbered_scene
from training.tiny.train_decoder import Pictures, drawn_latents


def pictures_of(tmp_path, count=2):
    renders = Renders(tmp_path / "train.rgb")
    renders.paint(count)
    latents = np.arange(count, dtype=np.float16)[:, None, None, None] * np.ones((1, 4, 64, 64), np.float16)
    return Pictures(renders, latents, latents, latents + 10, np.full((count, 512, 512, 3), 7, np.uint8))


def test_latents_come_with_their_own_picture(tmp_path):
    pictures, rng, seen = pictures_of(tmp_path), np.random.default_rng(0), set()
    for whole in (True, False) * 10:
        latents, picture = pictures.draw(1, rng, whole=whole)
        number = int(latents[0, 0, 0, 0])
        seen.add(number >= 10)
        assert picture.shape == (1, 3, 8 * latents.shape[2], 8 * latents.shape[3])
        drawn = to_pictures(picture)[0]
        if number >= 10:
            assert (drawn == 7).all()
        elif whole:
            assert np.array_equal(drawn, render(numbered_scene(number)))
    assert seen == {True, False}


def test_crops_of_latents_and_pictures_are_of_one_place(tmp_path):
    side = np.arange(64, dtype=np.float16)
    latents = np.stack([np.add.outer(64 * side, side)] * 4)[None].astype(np.float32)
    ramp = np.repeat(np.repeat(np.add.outer(2 * np.arange(64), np.arange(64)), 8, 0), 8, 1).astype(np.uint8)
    starts = np.stack([ramp] * 3, axis=-1)[None]
    pictures = Pictures(pictures_of(tmp_path).renders, latents[:0], latents[:0], latents, starts)
    rng = np.random.default_rng(3)
    for _ in range(40):
        state = rng.bit_generator.state
        if rng.random() < train_decoder.KINDS[1]:
            continue
        rng.bit_generator.state = state
        z, picture = pictures.draw(1, rng, whole=False)
        y, x = divmod(int(z[0, 0, 0, 0]), 64)
        assert to_pictures(picture)[0, 0, 0, 0] == np.uint8(2 * y + x)


def test_the_unets_latents_are_drawn_once(tmp_path):
    torch.manual_seed(0)
    prompts = Prompts()
    model = new_model(prompts.known).eval()
    renders = Renders(tmp_path / "train.rgb")
    first = drawn_latents(model, renders, prompts, tmp_path / "drawn.npy", 1)
    assert first.shape == (1, 4, 64, 64)
    assert first.dtype == np.float16
    model.unet.conv_out.weight.data.zero_()
    assert np.array_equal(drawn_latents(model, renders, prompts, tmp_path / "drawn.npy", 1), first)


def test_the_error_falls_with_the_decoder():
    torch.manual_seed(0)
    vae = train_vae.new_vae()
    x = torch.rand(1, 3, 64, 64) * 2 - 1
    latents = torch.randn(1, 4, 8, 8)
    optimizer = torch.optim.AdamW(vae.decoder.parameters(), lr=2e-3)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = train_decoder.loss(vae, (latents, x))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert all(weight.grad is None for weight in vae.encoder.parameters())
