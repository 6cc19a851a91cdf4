"""Training of the tiny model: it learns, it resumes exactly, and it steps as diffusers does."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from training.tiny import train_unet, train_vae
from training.tiny.charts import chart
from training.tiny.model import load_model, new_model
from training.tiny.pairs import Batch
from training.tiny.pixels import to_tensor
from training.tiny.render import render
from training.tiny.renders import numbered_scene
from training.tiny.sampler import schedule_rows, steps
from training.tiny.training import DECAY, Clock, Run


@pytest.fixture
def one_second_a_step(monkeypatch):
    now = iter(range(10**6))
    clock = SimpleNamespace(monotonic=lambda: float(next(now)))  # not the module's own: event loops live by that one
    monkeypatch.setattr("training.tiny.training.time", clock)


def start(out, seconds=40.0):
    torch.manual_seed(0)
    return Run(out, train_vae.new_vae(), seconds, muon_lr=0.01, adamw_lr=2e-3, keep=0.9)


def vae_steps(run, count):
    x = to_tensor(np.stack([render(numbered_scene(i), 64) for i in range(2)]))
    return [run.step(partial(train_vae.loss, run.model), [x]) for _ in range(count)]


def test_the_learning_rate_rises_stays_and_falls_to_zero_in_time(one_second_a_step):
    clock, shares = Clock(1000.0), []
    while not clock.over:
        shares.append(clock.share)
        clock.tick()
    assert len(shares) == 1000
    assert shares[0] < 0.05
    assert shares[100] == shares[300] == 1.0
    assert shares[-1] == pytest.approx(0.001 / DECAY, rel=1e-3)


def test_a_clock_says_once_that_an_interval_passed(one_second_a_step):
    clock, passed = Clock(35.0), []
    while not clock.over:
        clock.tick()
        if clock.passed(10):
            passed.append(clock.seconds)
    assert passed == [10, 20, 30, 35]


def test_a_resumed_run_equals_one_without_a_break(tmp_path, one_second_a_step):
    whole = start(tmp_path / "whole")
    vae_steps(whole, 6)
    drawn = whole.rng.random()
    first = start(tmp_path / "parts")
    vae_steps(first, 3)
    first.save()
    second = start(tmp_path / "parts")
    assert second.clock.step == 3
    vae_steps(second, 3)
    for name in ("model", "mean"):
        for a, b in zip(getattr(whole, name).parameters(), getattr(second, name).parameters(), strict=True):
            assert torch.equal(a, b)
    assert second.rng.random() == drawn


def test_the_autoencoder_learns_from_a_fixed_batch(tmp_path, one_second_a_step):
    losses = vae_steps(start(tmp_path, 1000.0), 25)
    assert losses[-1] < 0.8 * losses[0]


def test_a_run_ends_in_the_mean_weights(tmp_path, one_second_a_step):
    run = start(tmp_path)
    vae_steps(run, 20)
    saved = torch.load(run.finish("vae.pt"), weights_only=True)
    assert all(torch.equal(saved[name], value) for name, value in run.mean.state_dict().items())
    assert [round(minutes * 60) for minutes, _ in run.points("log.jsonl", "loss")] == [20]


def test_a_step_follows_the_mean_of_its_parts(tmp_path):
    run = Run(tmp_path, layer := torch.nn.Linear(2, 1), 100.0, muon_lr=0.01, adamw_lr=1e-3, keep=0.9)
    parts = [torch.tensor([4.0, 0.0]), torch.tensor([0.0, 2.0])]
    with torch.no_grad():  # numbers that bfloat16 holds, where the CPU has it
        layer.weight.copy_(torch.tensor([[0.25, -0.5]]))
        layer.bias.fill_(0.125)
    loss = run.step(lambda part: layer(part).sum(), parts)
    assert loss == (1.125 - 0.875) / 2
    assert layer.weight.grad.tolist() == [[2.0, 1.0]]


def test_a_chart_shows_its_lines():
    picture = np.asarray(chart({"loss": [(0, 1.0), (5, 0.1), (9, 0.01)]}, logarithmic=True))
    assert (picture == (0x25, 0x66, 0xD8)).all(-1).sum() > 500
    assert np.asarray(chart({"loss": []})).min() == 255


def fixed_batch(prompts, side=16):
    generator = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, 2, 4, side, side, generator=generator)
    ids = torch.from_numpy(np.stack([prompts.ids("a red cat at night"), prompts.ids("a blue car in the city")]))
    return Batch(latents, noise, ids, torch.ones(2, 1, side, side), torch.zeros(2, 1, side, side))


STARTS = np.random.default_rng(0).standard_normal((3, 4, 64, 64)).astype(np.float16)


@pytest.mark.parametrize("progress", [0.1, 0.9])
def test_the_unet_learns_from_a_fixed_batch(tmp_path, prompts, one_second_a_step, progress):
    torch.manual_seed(0)
    run = Run(tmp_path, new_model(prompts.known), 100.0, muon_lr=0.02, adamw_lr=2e-3, keep=0.5)
    batch, losses = fixed_batch(prompts), []
    for _ in range(10):
        lesson = train_unet.lesson(batch, STARTS[..., :16, :16], progress, run.rng)
        losses.append(run.step(partial(train_unet.loss, run.model), [[lesson]]))
    assert np.mean(losses[-4:]) < 0.9 * np.mean(losses[:4])
    loaded = load_model(run.finish("model.pt"))
    assert torch.equal(loaded.words, run.mean.words)


def test_lessons_come_in_the_shares_that_are_due(prompts):
    batch, rng = fixed_batch(prompts), np.random.default_rng(0)
    for progress, first, own in ((0.2, 0.8, 0.0), (0.55, 0.4, 0.0), (0.9, 0.4, train_unet.OWN)):
        lessons = [train_unet.lesson(batch, STARTS, progress, rng) for _ in range(600)]
        kinds = [
            "start"
            if each.start is not None
            else "render"
            if each.before is None
            else "own"
            if each.before
            else "first"
            for each in lessons
        ]
        shares = {"first": first, "own": own, "render": train_unet.RENDERS}
        shares["start"] = 1 - sum(shares.values())
        for kind, share in shares.items():
            assert kinds.count(kind) / 600 == pytest.approx(share, abs=0.06)
        assert all((each.row.index == 0) == (kind == "first") for each, kind in zip(lessons, kinds, strict=True))


def test_lessons_of_all_kinds_at_once_are_as_wrong_as_each_alone(model, prompts):
    batch, row = fixed_batch(prompts), train_unet.LATER[-1]
    before = tuple(
        r for r in train_unet.ROWS if r.num_inference_steps == row.num_inference_steps and r.index < row.index
    )
    start = batch.latents.flip(0) * 3
    lessons = [
        train_unet.Lesson(batch, train_unet.ROWS[0], before=()),
        train_unet.Lesson(batch, row, before=before),
        train_unet.Lesson(batch, row),
        train_unet.Lesson(batch, train_unet.LATER[0], start=start),
    ]
    with torch.no_grad():
        alone = [train_unet.loss(model, [lesson]).item() for lesson in lessons]
        together = train_unet.loss(model, lessons).item()
    assert together == pytest.approx(np.mean(alone), rel=1e-3)
    assert max(alone) > 1.05 * min(alone)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_sampler_steps_as_diffusers_does(checkpoint, model, prompts, count):
    rows = [row for row in schedule_rows() if row.num_inference_steps == count]
    with torch.no_grad():
        noise = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(5))
        ids = torch.from_numpy(prompts.ids("a red cat at night")[None])
        latents = steps(model.unet, noise, model.embeds(ids), rows)
    pipeline = StableDiffusionPipeline.from_pretrained(checkpoint, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(
        "a red cat at night",
        num_inference_steps=count,
        guidance_scale=0.0,
        latents=noise,
        output_type="latent",
    ).images
    torch.testing.assert_close(latents, expected, atol=0.05, rtol=0.02)
