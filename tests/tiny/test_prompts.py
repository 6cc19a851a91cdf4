"""Prompts as token ids, and batches of pictures, noise and prompts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sdturbo_export.weights.checkpoint import open_checkpoint
from sdturbo_export.weights.resolve import TINY_CHECKPOINT
from training.tiny.captions import vocabulary
from training.tiny.latents import BYTES, LatentFile
from training.tiny.layout import layout_from_noise
from training.tiny.model import new_model, take_text_encoder
from training.tiny.pairs import SUBJECT_WEIGHT, Pairs, subject_weights
from training.tiny.renders import Renders, numbered_scene
from training.tiny.subjects import SUBJECTS


def test_strange_words_have_no_learnt_piece(prompts):
    known, strange = set(prompts.known.tolist()), prompts.strange
    assert len(strange) > 10_000
    assert not vocabulary() & set(strange)
    marks = set(prompts.ids("").tolist())
    for word in strange[:: len(strange) // 200]:
        assert not (set(prompts.ids(word).tolist()) - marks) & known


def test_prompts_without_strange_words_are_known_altogether(prompts):
    known, rng = set(prompts.known.tolist()), np.random.default_rng(0)
    strange = set(prompts.strange)
    seen = [prompts.of(numbered_scene(i), rng) for i in range(200)]
    plain = [text for text in seen if not strange & set(text.replace(",", "").split())]
    assert 100 < len(plain) < 190
    assert all(set(prompts.ids(text).tolist()) <= known for text in plain)


def test_embeddings_of_strange_words_stay_zero(prompts, model):
    model.zero_grad()
    ids = torch.from_numpy(np.stack([prompts.ids("a red xylophone"), prompts.ids("a cat")]))
    model.embeds(ids).square().sum().backward()
    learnt = set(model.words.grad.abs().sum(1).nonzero()[:, 0].tolist())
    assert learnt <= set(prompts.known.tolist())
    assert len(learnt) > 3
    assert set(model.words.abs().sum(1).nonzero()[:, 0].tolist()) == set(prompts.known.tolist())


def test_a_taken_text_encoder_knows_plurals_and_learns_nothing_else(prompts):
    model, trained = new_model(prompts.known), open_checkpoint(TINY_CHECKPOINT).module("text_encoder").float()
    new = torch.from_numpy(prompts.plurals())
    take_text_encoder(model, TINY_CHECKPOINT, new)
    ids = torch.from_numpy(np.stack([prompts.ids("a red cat at night"), prompts.ids("two red cats at night")]))
    with torch.no_grad():
        torch.testing.assert_close(model.embeds(ids[:1]), trained(ids[:1]).last_hidden_state)
    cat, cats = ids[0, 3], ids[1, 3]
    assert torch.equal(model.words[cats], model.words[cat])
    learnt = [weight for weight in model.parameters() if weight.requires_grad]
    slopes = torch.autograd.grad(model.embeds(ids).square().sum(), learnt, allow_unused=True)
    (words,) = [slope for weight, slope in zip(learnt, slopes, strict=True) if weight is model.words]
    assert [weight.requires_grad for weight in model.text_encoder.parameters()].count(True) == 1
    assert set(words.abs().sum(1).nonzero()[:, 0].tolist()) == {int(cats)}


def test_plurals_are_pieces_that_no_singular_has(prompts):
    new, like = prompts.plurals().T
    assert len(set(new.tolist())) == len(new) > 15
    assert set(new.tolist()) <= set(prompts.known.tolist())
    assert prompts.ids("cats")[1] in new
    assert prompts.ids("cat")[1] not in new
    assert set(like.tolist()) - {-1} <= set(prompts.known.tolist())


def test_pairs_put_each_renders_layout_into_its_noise(tmp_path, prompts):
    latents = LatentFile(tmp_path / "latents.f16")
    latents.path.write_bytes(np.arange(3, dtype=np.float16).repeat(BYTES // 2).tobytes())
    pairs = Pairs(Renders(tmp_path / "none"), latents, prompts)
    batch = pairs.draw(5, np.random.default_rng(0))
    assert batch.ids.shape == (5, 77)
    for number, noise in zip(batch.latents[:, 0, 0, 0].int().tolist(), batch.noise.numpy(), strict=True):
        np.testing.assert_allclose(layout_from_noise(noise), numbered_scene(number).layout, atol=1e-4)
    assert batch.noise.std() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("subject", SUBJECTS)
def test_subjects_weigh_more_and_weights_have_mean_one(subject):
    weights = subject_weights(subject)
    assert weights.mean() == pytest.approx(1, abs=1e-5)
    assert weights.max() == pytest.approx(SUBJECT_WEIGHT * weights[0, 0, 0], rel=1e-5)
