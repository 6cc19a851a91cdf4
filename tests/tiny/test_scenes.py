"""The pictures that the embedded model learns from, and what their captions may say."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from benchmarks import quality
from sdturbo_export.int8 import prompts
from sdturbo_export.weights.resolve import TINY_CHECKPOINT
from training.tiny import captions
from training.tiny.caption_lists import LISTS, write_caption_lists
from training.tiny.captions import caption, plain_caption, vocabulary
from training.tiny.layout import layout_from_noise, layout_from_seed, noise_from_layout, sample
from training.tiny.palette import TONES
from training.tiny.render import render, sheet
from training.tiny.scenery import SCENERY
from training.tiny.scenes import HELD_OUT, TRAINING, Combination, Scene, scene_from_seed
from training.tiny.subjects import SUBJECTS

SIZE = 128
CAT = Combination("cat", "red", "meadow")
ALL = (*TRAINING, *HELD_OUT)
SUBJECT_BOX = np.s_[SIZE // 2 - SIZE // 8 : SIZE // 2 + SIZE // 8, SIZE // 2 - SIZE // 8 : SIZE // 2 + SIZE // 8]


def difference(a, b):
    """(size, size): the largest difference of the three channels."""
    return np.abs(a.astype(np.int16) - b).max(-1)


def test_a_scene_is_always_drawn_the_same():
    first, second = (render(scene_from_seed(CAT, 7), SIZE) for _ in range(2))
    assert first.dtype == np.uint8
    assert first.shape == (SIZE, SIZE, 3)
    assert np.array_equal(first, second)


@pytest.mark.parametrize("scene", SCENERY)
def test_seeds_are_visibly_different_and_the_subject_stays(scene):
    pictures = [render(scene_from_seed(Combination("house", "blue", scene), seed), SIZE) for seed in range(6)]
    for a, b in combinations(pictures, 2):
        assert (difference(a, b) > 16).mean() > 0.08
        assert np.array_equal(a[SUBJECT_BOX], b[SUBJECT_BOX])


def test_every_combination_is_drawn_and_looks_like_no_other():
    layout = layout_from_seed(3)
    pictures = {c: render(Scene(*c, layout), 64) for c in ALL if c.scene in {"snow", "night"}}
    for a, b in combinations(pictures, 2):
        if sum(x == y for x, y in zip(a, b, strict=True)) == 2:
            assert (difference(pictures[a], pictures[b]) > 30).mean() > 0.04, (a, b)


@pytest.mark.parametrize("scene", SCENERY)
def test_a_small_change_of_the_layout_changes_little(scene):
    rng = np.random.default_rng(0)
    for seed in range(4):
        here = scene_from_seed(Combination("rocket", "pink", scene), seed)
        step = rng.standard_normal(here.layout.shape, np.float32)
        near, nearer = (
            difference(render(here, 256), render(Scene("rocket", "pink", scene, here.layout + size * step), 256)).mean()
            for size in (0.05, 0.01)
        )
        assert near < 2.5
        assert nearer < 0.6


@pytest.mark.parametrize("scene", SCENERY)
def test_what_is_drawn_depends_on_the_layout_in_place(scene):
    here = scene_from_seed(Combination("car", "white", scene), 5)
    layout = here.layout.copy()
    layout[:, :4] = layout_from_seed(6)[:, :4]  # the left quarter
    changed = difference(render(here, SIZE), render(Scene("car", "white", scene, layout), SIZE)) > 0
    assert changed[:, : SIZE // 4].mean() > 0.05
    assert not changed[:, SIZE * 5 // 8 :].any()


def test_layouts_of_noise_have_unit_variance_and_come_back():
    rng = np.random.default_rng(1)
    layouts = layout_from_noise(rng.standard_normal((20, 4, 64, 64), np.float32))
    assert layouts.shape == (20, 16, 16, 4)
    assert layouts.std() == pytest.approx(1, abs=0.02)
    noise = noise_from_layout(layouts[0], rng)
    assert noise.dtype == np.float32
    assert noise.std() == pytest.approx(1, abs=0.03)
    np.testing.assert_allclose(layout_from_noise(noise), layouts[0], atol=1e-5)


def test_the_field_between_blocks_keeps_unit_variance():
    layouts = np.random.default_rng(2).standard_normal((2000, 16, 16, 4)).astype(np.float32)
    places = np.array([0.0, 100.0, 112.0, 128.0, 511.0])
    values = np.array([sample(layout, places, 300.0, 1) for layout in layouts])
    np.testing.assert_allclose(values.std(axis=0), 1, atol=0.06)


def test_layout_follows_the_engines_noise():
    torch = pytest.importorskip("torch")
    noise = torch.randn((1, 4, 64, 64), generator=torch.Generator().manual_seed(11)).numpy()
    assert np.array_equal(layout_from_seed(11), layout_from_noise(noise)[0])


def test_one_eighth_is_held_out_and_every_pair_of_words_is_trained():
    assert len(SUBJECTS) >= 6
    assert len(TONES) >= 8
    assert len(SCENERY) >= 6
    assert len(HELD_OUT) * 8 == len(ALL) == len(set(ALL)) == len(SUBJECTS) * len(TONES) * len(SCENERY)
    for omitted in range(3):
        pairs = {c[:omitted] + c[omitted + 1 :] for c in ALL}
        assert {c[:omitted] + c[omitted + 1 :] for c in TRAINING} == pairs
    for words in zip(*HELD_OUT, strict=True):
        counts = {word: words.count(word) for word in words}
        assert max(counts.values()) - min(counts.values()) <= 1


def test_what_an_unnamed_colour_and_scene_stand_for_is_trained():
    for subject in SUBJECTS:
        assert (subject, captions.USUAL_COLOUR[subject], captions.USUAL_SCENE[subject]) in TRAINING


def test_no_word_names_two_things():
    nameless = captions.FUNCTION_WORDS
    owners: dict[str, set[str]] = {}
    tables = (captions.SUBJECT_WORDS, captions.COLOUR_WORDS)
    places = (captions.PLACE_PHRASES, captions.PLACE_NOUNS, captions.PLACE_WORDS)
    for table in (*tables, *places):
        for name, phrases in table.items():
            for phrase in phrases:
                words = [word for word in phrase.replace("-", " ").split() if word not in nameless]
                assert words, phrase
                for word in words:
                    owners.setdefault(word, set()).add(name)
    assert {word: names for word, names in owners.items() if len(names) > 1} == {}
    dressing = " ".join((*captions.OPENINGS, *captions.QUALITIES, *captions.ENDINGS)).split()
    assert not owners.keys() & set(dressing)


def test_captions_name_everything_but_the_usual():
    rng = np.random.default_rng(3)
    for what in ALL * 3:
        text = caption(what, rng)
        assert text == text.strip()
        assert set(text.replace("-", " ").replace(",", " ").split()) <= vocabulary(), text
        assert any(word.removesuffix("y") in text for word in captions.SUBJECT_WORDS[what.subject])  # kitties
        if what.colour != captions.USUAL_COLOUR[what.subject]:
            assert any(word in text for word in captions.COLOUR_WORDS[what.colour])
        if what.scene != captions.USUAL_SCENE[what.subject]:
            tables = (captions.PLACE_PHRASES, captions.PLACE_NOUNS, captions.PLACE_WORDS)
            assert any(phrase in text for table in tables for phrase in table[what.scene])


def test_captions_vary_and_repeat_with_their_generator():
    texts = [[caption(CAT, rng) for _ in range(200)] for rng in (np.random.default_rng(4), np.random.default_rng(4))]
    assert texts[0] == texts[1]
    assert len(set(texts[0])) > 80
    assert plain_caption(Combination("cat", "orange", "snow")) == "an orange cat in the snow"


def test_the_packaged_lists_hold_what_the_grammar_gives(tmp_path):
    folder = TINY_CHECKPOINT.parent
    written = {file.name: file.read_bytes() for file in write_caption_lists(tmp_path)}
    assert written.keys() == LISTS.keys() == {file.name for file in folder.glob("*.txt")}
    for name, content in written.items():
        assert (folder / name).read_bytes() == content, f"python -m training.tiny.caption_lists {folder}"
        assert content.decode().splitlines() == [plain_caption(what) for what in LISTS[name]]


def test_int8_and_benchmarks_draw_captions_spread_over_the_lists():
    calibration, judging = prompts._tiny().calibration, prompts._tiny().judging
    assert calibration == tuple(plain_caption(what) for what in TRAINING[:: len(TRAINING) // 16])
    assert list(judging) == quality.prompts(32) == [plain_caption(HELD_OUT[i * 48 // 32]) for i in range(32)]
    assert quality.prompts(48) == [plain_caption(what) for what in HELD_OUT]


def test_a_sheet_holds_all_pictures_in_rows():
    pictures = [np.full((20, 30, 3), value, np.uint8) for value in (10, 20, 30)]
    assert sheet(pictures, 2).size == (60, 40)
    labelled = sheet(pictures, 2, ("a", "b", "c"))
    assert labelled.width == 60
    assert labelled.height > 40
    assert labelled.getpixel((5, 5)) == (10, 10, 10)
