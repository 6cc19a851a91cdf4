"""The command `sdturbo walk`, with the null backend."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdturbo import Pipeline


def test_walk_writes_numbered_frames_between_two_pictures_of_generate(sdturbo, bundle_dir, tmp_path):
    arguments = ["--seed", 1, "--to-seed", 2, "--frames", 4, "--steps", 2, "--backend", "null"]
    status, stdout, _ = sdturbo("walk", "a cat", "a dog", *arguments, "--out", tmp_path / "a" / "frames", "--json")
    document = json.loads(stdout)
    assert status == 0
    assert (document["backend"], document["seeds"]) == ("null", [1, 2])
    paths = [Path(frame["path"]) for frame in document["frames"]]
    assert paths == [tmp_path / "a" / "frames" / f"000{i}.png" for i in range(4)]
    assert sorted(paths[0].parent.iterdir()) == paths
    pixels, texts = [], []
    for path in paths:
        with Image.open(path) as image:
            pixels.append(np.asarray(image))
            texts.append(image.text["parameters"])
    pipe = Pipeline.load(bundle_dir, "null")
    for end, prompt, seed in ((0, "a cat", 1), (-1, "a dog", 2)):
        expected = pipe(prompt, seed=seed, num_inference_steps=2)
        assert np.array_equal(pixels[end], np.asarray(expected.images[0]))
        assert texts[end] == expected.images[0].info["parameters"]
    assert texts[1].startswith("Frame 1 of 3 from 'a cat' with seed 1 to 'a dog' with seed 2\nSteps: 2, ")
    assert len({each.tobytes() for each in pixels}) == 4


def test_walk_keeps_the_seed_and_says_what_it_wrote(sdturbo, tmp_path):
    words = "word " * 100
    arguments = ["--frames", 3, "--seed", "random", "--backend", "null", "--out", tmp_path]
    status, stdout, stderr = sdturbo("walk", words, "a dog", *arguments)
    assert status == 0
    assert f"{tmp_path / '0000.png'} to {tmp_path / '0002.png'}" in stdout
    assert "did not see" in stderr
    seeds = set()
    for name in ("0000.png", "0002.png"):
        with Image.open(tmp_path / name) as image:
            seeds.add(image.text["parameters"].split("Seed: ")[1].split(",")[0])
    assert len(seeds) == 1


def test_a_drawn_seed_of_the_last_frame_is_said_and_is_that_of_its_picture(sdturbo, bundle_dir, tmp_path):
    arguments = ["--to-seed", "random", "--no-metadata", "--frames", 2, "--backend", "null", "--out", tmp_path]
    drawn = [sdturbo("walk", "a cat", "a cat", *arguments, "--json") for _ in range(2)]
    (first, last), (_, other) = (json.loads(stdout)["seeds"] for _, stdout, _ in drawn)
    assert first == 0
    assert last not in (0, other)
    expected = Pipeline.load(bundle_dir, "null")("a cat", seed=other).images[0]
    with Image.open(tmp_path / "0001.png") as image:
        assert np.array_equal(np.asarray(image), np.asarray(expected))
    status, stdout, _ = sdturbo("walk", "a cat", "a cat", *arguments)
    assert status == 0
    assert "  seeds 0 to " in stdout


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["a cat", "a dog", "--to-seed", "chance"], 2, "'chance' is neither a whole number nor the word random"),
        (["a cat"], 2, "TO_PROMPT"),
        (["a cat", "a dog", "--frames", 1], 2, "Got frames=1, expected a whole number from 2"),
        (["a cat", "a dog", "--steps", 5], 2, "expected 1 to 4"),
        (["a cat", "a dog", "--seed", -1], 2, "expected 0 to 2**64 - 1"),
        (["a cat", "a dog", "--to-seed", -1], 2, "expected 0 to 2**64 - 1"),
        (["a cat", "a dog", "--out", "file"], 2, "Got the file file as --out, expected a directory"),
        (["a cat", "a dog", "--out", "file/frames"], 2, "Cannot write file/frames/0000.png"),
        (["a cat", "a dog", "--out", "x" * 5000], 2, "Choose another output path"),
        (["a cat", "a dog", "--bundle", "nowhere"], 3, "no such directory"),
        (["\ud800", "a dog"], 2, "not valid Unicode"),
    ],
)
def test_bad_walks_give_a_sentence_and_write_nothing(sdturbo, tmp_path, monkeypatch, arguments, status, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    given, _, stderr = sdturbo("walk", *arguments, "--backend", "null")
    assert given == status
    assert words in stderr
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
