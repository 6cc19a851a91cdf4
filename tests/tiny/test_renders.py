"""Renders and their latents: files that grow, and pixels that come back."""

from __future__ import annotations

import numpy as np
import torch

from training.tiny import train_vae
from training.tiny.latent_scale import fold_latent_scale, latent_statistics
from training.tiny.latents import BYTES, LatentFile
from training.tiny.pixels import psnr, to_pictures, to_tensor
from training.tiny.render import render
from training.tiny.renders import PICTURE, Renders, numbered_scene
from training.tiny.scenes import HELD_OUT, TRAINING


def test_numbered_scenes_are_of_their_own_part_and_take_turns():
    count = len(TRAINING)
    first = [numbered_scene(i) for i in range(count)]
    assert {(s.subject, s.colour, s.scene) for s in first} == set(TRAINING)
    held_out = {
        (s.subject, s.colour, s.scene) for s in (numbered_scene(i, held_out=True) for i in range(len(HELD_OUT)))
    }
    assert held_out == set(HELD_OUT)
    assert np.array_equal(numbered_scene(5).layout, first[5].layout)


def test_a_longer_file_of_renders_only_adds_pictures(tmp_path):
    renders = Renders(tmp_path / "train.rgb")
    renders.paint(1)
    first = renders.picture(0)
    with renders.path.open("ab") as file:
        file.write(bytes(PICTURE // 2))
    renders.paint(2)
    assert len(renders) == 2
    assert np.array_equal(renders.picture(0), first)
    assert np.array_equal(renders.picture(1), render(numbered_scene(1)))


def test_processes_paint_what_one_alone_would(tmp_path):
    renders = Renders(tmp_path / "train.rgb")
    renders.paint(1)
    renders.paint_in_background(4).join()
    assert len(renders) == 4
    assert all(np.array_equal(renders.picture(i), render(numbered_scene(i))) for i in range(4))


def test_latents_are_encoded_once(tmp_path):
    renders, latents = Renders(tmp_path / "train.rgb"), LatentFile(tmp_path / "latents.f16")
    renders.paint(2)
    vae = train_vae.new_vae().eval()
    latents.encode(vae, renders, 1)
    before = latents.path.read_bytes()
    latents.encode(vae, renders, 2)
    assert latents.path.read_bytes()[:BYTES] == before
    with torch.no_grad():
        mean = vae.encode(to_tensor(renders.picture(1)[None])).latent_dist.mean
    assert np.abs(latents.read()[1] - mean[0].numpy()).max() < 1e-2


def test_pixels_survive_the_way_to_tensors_and_back():
    picture = render(numbered_scene(3), 64)[None]
    assert np.array_equal(to_pictures(to_tensor(picture)), picture)
    assert psnr(picture, picture) > 90
    assert psnr(np.zeros((2, 2, 3), np.uint8), np.full((2, 2, 3), 255, np.uint8)) == 0


def test_folding_the_scale_normalises_latents_and_keeps_pictures():
    torch.manual_seed(0)
    vae = train_vae.new_vae().eval()
    pictures = [to_tensor(render(numbered_scene(i), 128)[None]) for i in range(4)]
    with torch.no_grad():
        vae.quant_conv.bias.add_(torch.tensor([3.0, -1.0, 0.5, 2.0, 0.0, 0.0, 0.0, 0.0]))
        before = [vae.encode(x).latent_dist for x in pictures]
        drawn = [vae.decode(p.mean).sample for p in before]
        mean, deviation = latent_statistics(vae, pictures)
        fold_latent_scale(vae, mean, deviation)
        for x, old, picture in zip(pictures, before, drawn, strict=True):
            new = vae.encode(x).latent_dist
            scale = deviation[:, None, None]
            torch.testing.assert_close(new.mean, (old.mean - mean[:, None, None]) / scale, atol=2e-4, rtol=1e-4)
            torch.testing.assert_close(new.std, old.std / scale, atol=1e-4, rtol=1e-3)
            torch.testing.assert_close(vae.decode(new.mean).sample, picture, atol=2e-3, rtol=0)
        after = latent_statistics(vae, pictures)
    torch.testing.assert_close(after[0], torch.zeros(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(after[1], torch.ones(4), atol=1e-3, rtol=0)
