"""The judge and the figures of the embedded model."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from training.tiny.classifier import NAMES, Classifier, Examples, disturbed, reduced, train_classifier
from training.tiny.evaluate import accuracy, requests, table
from training.tiny.pixels import to_tensor
from training.tiny.render import render
from training.tiny.renders import numbered_scene
from training.tiny.scenes import HELD_OUT, Combination
from training.tiny.sharpness import fine_energy


def test_a_classifier_learns_pictures_by_heart():
    scenes = [numbered_scene(i) for i in range(6)]
    pictures = np.stack([render(scene, 128) for scene in scenes])
    what = [Combination(scene.subject, scene.colour, scene.scene) for scene in scenes]
    labels = torch.tensor([[names.index(word) for names, word in zip(NAMES, one, strict=True)] for one in what])
    classifier = train_classifier(Examples(pictures, labels), 40)
    seen = classifier.judge(pictures.repeat(4, axis=1).repeat(4, axis=2))
    assert accuracy(what, seen).everything > 0.8


def test_disturbed_pictures_keep_their_shape_and_are_others():
    x = to_tensor(np.stack([render(numbered_scene(0), 128)]))
    y = disturbed(x, np.random.default_rng(0))
    assert y.shape == x.shape
    assert Classifier()(y).shape == (1, 22)
    assert 0.001 < (x - y).abs().mean() < 0.3


def test_reduced_takes_means():
    picture = np.arange(512 * 512 * 3, dtype=np.uint32).astype(np.uint8).reshape(1, 512, 512, 3)
    assert reduced(picture)[0, 3, 5, 1] == round(picture[0, 12:16, 20:24, 1].mean())


def test_fine_energy_is_that_of_edges_and_not_of_what_is_smooth():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (64, 64, 3), np.uint8)
    wave = 127.5 + 127.5 * np.cos(2 * np.pi * np.arange(64) / 64)
    smooth = np.tile(wave.astype(np.uint8)[:, None, None], (1, 64, 3))
    assert fine_energy(smooth) < 1e-2 * fine_energy(noise)
    assert fine_energy(noise // 2) == pytest.approx(fine_energy(noise) / 4, rel=0.05)


def test_accuracy_counts_each_part_and_all_together():
    a, b = Combination("cat", "red", "night"), Combination("cat", "blue", "night")
    result = accuracy([a, a, a, a], [a, a, a, b])
    assert (result.subject, result.colour, result.scene, result.everything) == (1.0, 0.75, 1.0, 0.75)
    assert "| x | subject 50.0%, least 5.0% |" in table({"x": {"subject": 0.5, "least": 0.05}, "pictures": 240})


def test_every_held_out_combination_is_asked_for_with_its_own_seed():
    wanted = requests()
    assert len(wanted) >= 200
    assert {what for what, _, _ in wanted} == set(HELD_OUT)
    assert len({seed for _, _, seed in wanted}) == len(wanted)
