"""Training of the tiny model: it learns, it resumes exactly, and what it leaves is a checkpoint."""

from __future__ import annotations

import inspect
import re
from functools import partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

import training.tiny
from sdturbo_export.weights.checkpoint import open_checkpoint
from sdturbo_export.weights.resolve import TINY_CHECKPOINT
from training.tiny import train_unet, train_vae
from training.tiny.captions import vocabulary
from training.tiny.charts import chart
from training.tiny.checkpoint_writer import card, half_tensors, write_checkpoint
from training.tiny.classifier import NAMES, Classifier, Examples, disturbed, reduced, train_classifier
from training.tiny.evaluate import accuracy, requests, table
from training.tiny.latent_scale import fold_latent_scale, latent_statistics
from training.tiny.latents import BYTES, LatentFile
from training.tiny.layout import layout_from_noise
from training.tiny.model import load_model, new_model, take_text_encoder
from training.tiny.pairs import SUBJECT_WEIGHT, Batch, Pairs, subject_weights
from training.tiny.pixels import psnr, to_pictures, to_tensor
from training.tiny.prompts import Prompts
from training.tiny.render import render
from training.tiny.renders import PICTURE, Renders, numbered_scene
from training.tiny.sampler import schedule_rows, steps
from training.tiny.scenes import HELD_OUT, TRAINING, Combination
from training.tiny.sharpness import fine_energy
from training.tiny.starting import FLAT, PATCHED, draw_starts, followed, low
from training.tiny.starts import Starts
from training.tiny.subjects import SUBJECTS
from training.tiny.training import DECAY, Clock, Run


@pytest.fixture(scope="module")
def prompts():
    return Prompts()


@pytest.fixture
def one_second_a_step(monkeypatch):
    now = iter(range(10**6))
    clock = SimpleNamespace(monotonic=lambda: float(next(now)))  # not the module's own: event loops live by that one
    monkeypatch.setattr("training.tiny.training.time", clock)


@pytest.fixture(scope="module")
def model(prompts):
    torch.manual_seed(0)
    return new_model(prompts.known)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, model):
    torch.manual_seed(0)
    modules = {"text_encoder": model.text_encoder, "unet": model.unet, "vae": train_vae.new_vae()}
    return write_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny", modules, results="| a | 1 |")


def start(out, seconds=40.0):
    torch.manual_seed(0)
    return Run(out, train_vae.new_vae(), seconds, muon_lr=0.01, adamw_lr=2e-3, keep=0.9)


def vae_steps(run, count):
    x = to_tensor(np.stack([render(numbered_scene(i), 64) for i in range(2)]))
    return [run.step(partial(train_vae.loss, run.model), [x]) for _ in range(count)]


# ---- the clock and the run ---------------------------------------------------------------------------------------


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


# ---- renders and latents -----------------------------------------------------------------------------------------


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


# ---- prompts and pairs -------------------------------------------------------------------------------------------


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


# ---- the UNet ----------------------------------------------------------------------------------------------------


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
        losses.append(run.step(partial(train_unet.loss, run.model), [lesson]))
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


# ---- start pictures ----------------------------------------------------------------------------------------------


def test_start_pictures_are_of_three_kinds_and_repeat():
    starts, others = Starts().pictures(6), Starts(held_out=True).pictures(6)
    assert starts.shape == (6, 512, 512, 3)
    assert np.array_equal(starts, Starts().pictures(6))
    assert all(a.tobytes() != b.tobytes() for a, b in zip(starts, others, strict=True))
    steps = [np.abs(np.diff(picture.astype(int), axis=1)) for picture in starts]
    assert all(step.max() > 100 for step in steps[::3])  # strokes have edges
    assert all(step.max() < 16 for step in steps[1::3])  # gradients have none


@pytest.mark.parametrize("sigma", [0.69, 1.61, 4.08])
def test_where_start_and_prompt_agree_the_picture_stays(sigma):
    generator = torch.Generator().manual_seed(0)
    drawn, subjects = torch.randn(2, 4, 64, 64, generator=generator), torch.rand(2, 1, 64, 64, generator=generator)
    torch.testing.assert_close(followed(drawn, drawn, subjects, sigma), drawn)


def test_more_noise_leaves_less_of_the_start_picture():
    generator = torch.Generator().manual_seed(0)
    start = low(torch.randn(1, 4, 64, 64, generator=generator), 2.0) * 5
    drawn, subjects = torch.zeros(1, 4, 64, 64), torch.zeros(1, 1, 64, 64)
    subjects[..., 20:40, 20:40] = 1
    errors, inside = [], []
    for sigma in (0.69, 0.93, 1.61, 2.92, 4.08):
        target = followed(start, drawn, subjects, sigma)
        errors.append((target - start).square().mean().item())
        inside.append(target[..., 20:40, 20:40].square().mean().item())
    assert errors == sorted(errors)
    assert errors[0] < 0.05 * errors[-1]
    assert inside[-1] < 1e-6


@pytest.mark.parametrize("width", [0.5, 2.0, 8.0])
def test_a_gaussian_mean_keeps_what_is_flat_and_dims_what_is_fine(width):
    flat = torch.full((1, 4, 64, 64), 3.0)
    torch.testing.assert_close(low(flat, width), flat)
    checks = torch.ones(1, 4, 64, 64)
    checks[..., ::2, :] = -1
    weights = np.exp(-0.5 * (np.arange(-40, 41) / width) ** 2)
    expected = abs((weights * (-1.0) ** np.arange(81)).sum() / weights.sum())  # of a wave of two pixels
    assert low(checks, width)[0, 0, 32, 32].abs().item() == pytest.approx(expected, abs=0.02)


def test_some_start_pictures_are_flat_or_patched():
    pictures = np.random.default_rng(1).standard_normal((5, 4, 64, 64)).astype(np.float16)
    drawn = draw_starts(pictures, 400, np.random.default_rng(0)).numpy()
    flat = (drawn.std((2, 3)) < 1e-3).all(1)
    whole = (drawn[:, None] == pictures.astype(np.float32)).all((2, 3, 4)).any(1)
    assert flat.mean() == pytest.approx(FLAT, abs=0.06)
    assert (~flat & ~whole).mean() == pytest.approx(PATCHED, abs=0.06)


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


# ---- the checkpoint ----------------------------------------------------------------------------------------------


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


# ---- the evaluation ----------------------------------------------------------------------------------------------


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
