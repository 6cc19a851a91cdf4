"""The command `sdturbo`, in process, on the hand-made bundle with the null backend."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdturbo import Pipeline


def test_generate_writes_the_picture_of_the_pipeline(sdturbo, bundle_dir, tmp_path):
    out = tmp_path / "a" / "fox.png"
    status, stdout, _ = sdturbo("generate", "a fox", "--seed", 7, "--steps", 2, "--out", out, "--backend", "null")
    assert status == 0
    assert str(out) in stdout
    expected = Pipeline.load(bundle_dir, "null")("a fox", seed=7, num_inference_steps=2, output_type="np").images[0]
    with Image.open(out) as image:
        assert np.array_equal(np.asarray(image), expected)
        assert image.text["parameters"].startswith("a fox\nSteps: 2, ")
        assert "Seed: 7," in image.text["parameters"]


def test_generate_json_lists_every_image(sdturbo, tmp_path):
    words = "word " * 100
    status, stdout, _ = sdturbo(
        "generate", words, "--count", 3, "--seed", 5, "--out", tmp_path / "x.png", "--backend", "null", "--json"
    )
    document = json.loads(stdout)
    assert status == 0
    assert [one["seed"] for one in document["images"]] == [5, 6, 7]
    assert [os.path.basename(one["path"]) for one in document["images"]] == ["x-0.png", "x-1.png", "x-2.png"]  # noqa: PTH119
    assert document["backend"] == "null"
    assert document["dropped"].strip().startswith("word")


@pytest.mark.parametrize(("name", "kind"), [("x.jpg", "JPEG"), ("x.JPEG", "JPEG"), ("x.webp", "WEBP"), ("x", "PNG")])
def test_the_suffix_of_out_chooses_the_format(sdturbo, tmp_path, name, kind):
    """Each says how its picture was made, as AUTOMATIC1111's web UI writes it."""
    assert sdturbo("generate", "ein Füchslein", "--out", tmp_path / name, "--backend", "null")[0] == 0
    with Image.open(tmp_path / name) as image:
        assert image.format == kind
        comment = image.getexif().get_ifd(0x8769).get(0x9286, b"")
        text = image.text["parameters"] if kind == "PNG" else comment.removeprefix(b"UNICODE\0").decode("utf-16-be")
    assert text.startswith("ein Füchslein\nSteps: 1, ")


def test_another_suffix_is_refused_before_anything_is_loaded(sdturbo, tmp_path):
    out = tmp_path / "x.bmp"
    status, _, stderr = sdturbo("generate", "x", "--out", out, "--bundle", tmp_path / "none")
    assert status == 2
    assert f"Got {out} to write a picture to. Expected a name that ends in .png, .jpg, .jpeg, .webp." in stderr
    assert list(tmp_path.iterdir()) == []


def test_a_picture_on_standard_output_is_alone_there(bundle_dir, tmp_path):
    command = [sys.executable, "-m", "sdturbo", "generate", "a fox", "--bundle", bundle_dir, "--backend", "null"]
    done = subprocess.run([*command, "--out", "-"], capture_output=True, check=True, cwd=tmp_path)
    with Image.open(io.BytesIO(done.stdout)) as image:
        assert image.format == "PNG"
        image.load()
    assert b"null" in done.stderr
    assert b"seed 0" in done.stderr
    assert list(tmp_path.iterdir()) == []
    for more, words in (
        (["--count", "2"], b"Standard output takes one"),
        (["--json"], b"Both write to standard output"),
    ):
        done = subprocess.run([*command, "--out", "-", *more], capture_output=True, check=False)
        assert done.returncode == 2
        assert words in done.stderr


def test_prompts_come_from_a_file_or_from_standard_input(sdturbo, bundle_dir, tmp_path, monkeypatch):
    file = tmp_path / "prompts.txt"
    file.write_text("\N{BYTE ORDER MARK}a fox\n\n  a blue cat \n", encoding="utf-8")
    arguments = ["--count", 2, "--seed", 5, "--backend", "null", "--json"]
    monkeypatch.setenv("HOME", str(tmp_path))
    status, stdout, _ = sdturbo(
        "generate", "--prompts=~/prompts.txt", "--out=~/x.webp", *arguments
    )  # as shells leave it
    assert status == 0
    written = [(Path(each["path"]).name, each["prompt"], each["seed"]) for each in json.loads(stdout)["images"]]
    fox, cat = "a fox", "a blue cat"
    assert written == [("x-0.webp", fox, 5), ("x-1.webp", fox, 6), ("x-2.webp", cat, 5), ("x-3.webp", cat, 6)]
    command = [
        sys.executable,
        "-m",
        "sdturbo",
        "generate",
        "--prompts",
        "-",
        "--bundle",
        bundle_dir,
        "--backend",
        "null",
    ]
    subprocess.run([*command, "--out", tmp_path / "y.png"], input=file.read_bytes(), check=True, capture_output=True)
    assert {path.name for path in tmp_path.glob("y*")} == {"y-0.png", "y-1.png"}
    with Image.open(tmp_path / "y-0.png") as image:
        assert image.text["parameters"].startswith("a fox\n")


def test_a_prompt_is_given_once(sdturbo, tmp_path):
    empty = tmp_path / "empty.txt"
    empty.write_text("\n \n")
    binary = tmp_path / "binary.txt"
    binary.write_bytes(b"\xff\xfe\xfd")
    for arguments, words in (
        ([], "Got no PROMPT"),
        (["x", "--prompts", empty], "Got both a PROMPT and --prompts"),
        (["--prompts", empty], "holds no prompt"),
        (["--prompts", binary], "Cannot read the prompts"),
        (["--prompts", tmp_path / "absent"], "Cannot read the prompts"),
    ):
        status, _, stderr = sdturbo("generate", *arguments, "--out", tmp_path / "x.png", "--backend", "null")
        assert status == 2
        assert words in stderr
    assert not list(tmp_path.glob("x*"))


def test_a_random_seed_is_told(sdturbo, tmp_path):
    arguments = ["--out", tmp_path / "x.png", "--backend", "null", "--json"]
    seeds = [
        json.loads(sdturbo("generate", "x", "--seed", "random", *arguments)[1])["images"][0]["seed"] for _ in range(3)
    ]
    assert len(set(seeds)) == 3
    status, _, stderr = sdturbo("generate", "x", "--seed", "many", *arguments[:4])
    assert status == 2
    assert "'many' is neither a whole number nor the word random" in stderr


def test_dropped_text_is_said(sdturbo, tmp_path):
    _, _, stderr = sdturbo("generate", "word " * 100, "--out", tmp_path / "x.png", "--backend", "null")
    assert "did not see" in stderr


def test_image_to_image_from_a_file(sdturbo, bundle_dir, tmp_path):
    Image.new("RGB", (90, 50), (200, 30, 10)).save(tmp_path / "start.png")
    out = tmp_path / "out.png"
    arguments = ["--image", tmp_path / "start.png", "--strength", 0.5, "--steps", 2, "--out", out, "--backend", "null"]
    assert sdturbo("generate", "x", *arguments)[0] == 0
    pipe = Pipeline.load(bundle_dir, "null")
    start = tmp_path / "start.png"
    expected = pipe("x", start, strength=0.5, num_inference_steps=2, output_type="np").images[0]
    with Image.open(out) as image:
        assert np.array_equal(np.asarray(image), expected)


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--steps", 5], 2, "expected 1 to 4"),
        (["--seed", -1], 2, "expected 0 to 2**64 - 1"),
        (["--count", 0], 2, "expected 1 or more"),
        (["--strength", 0.5], 2, "without an image"),
        (["--image", "nowhere.png"], 2, "nowhere.png"),
        (["--backend", "cuda-dreams"], 2, "Unknown backend"),
        (["--threads", 100000], 2, "CPUs"),
        (["--precision", "fp7"], 2, "fp32"),
        (["--bundle", "nowhere"], 3, "no such directory"),
        (["--out", "."], 2, "Got the directory"),
        (["--what"], 2, "No such option"),
    ],
)
def test_bad_input_gives_a_sentence_and_its_exit_code(sdturbo, tmp_path, monkeypatch, arguments, status, words):
    monkeypatch.chdir(tmp_path)
    base = ["generate", "x", "--backend", "null"]
    found, _, stderr = sdturbo(*base, *arguments)
    assert found == status
    assert words in stderr
    assert list(tmp_path.iterdir()) == []
    found, stdout, _ = sdturbo(*base, *arguments, "--json")
    assert found == status
    assert json.loads(stdout)["error"]["exit_code"] == status


def test_without_a_bundle_the_embedded_model_draws_and_says_that_it_is_no_sd_turbo(sdturbo, monkeypatch, tmp_path):
    monkeypatch.delenv("SDTURBO_BUNDLE")
    status, stdout, stderr = sdturbo("generate", "a red cat in the snow", "--out", tmp_path / "cat.png", "--json")
    assert status == 0
    assert "`tiny`, not SD-Turbo" in stderr
    assert json.loads(stdout)["bundle_id"] == Pipeline.load(backend="null").bundle.bundle_id
    with Image.open(tmp_path / "cat.png") as image:
        assert "Model: tiny" in image.text["parameters"]


def test_info_in_words_and_json(sdturbo, bundle_dir):
    status, stdout, _ = sdturbo("info")
    assert status == 0
    document = json.loads(sdturbo("info", "--json")[1])
    assert document["bundle_id"] in stdout
    assert document["batch_sizes"]
    assert document["weight_format"] == "fp32"
    assert document["bytes"] == sum(entry["size"] for entry in _manifest(bundle_dir)["files"].values())


def test_doctor_names_every_backend_and_its_precisions(sdturbo):
    status, stdout, _ = sdturbo("doctor", "--json")
    document = json.loads(stdout)
    assert status == 0
    assert document["backends"]["onnxruntime"]["devices"]["cpu"]["fp32"] == "runs"
    assert "bf16" in document["backends"]["onnxruntime"]["devices"]["cpu"]["bf16"]
    assert document["backends"]["openvino"]["devices"]["cpu"]["fp32"] == "runs"
    assert document["cpu"]["count"] >= 1
    assert "openvino cpu fp32: runs" in sdturbo("doctor")[1]


def test_doctor_fails_where_nothing_runs(sdturbo, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    status, stdout, _ = sdturbo("doctor")
    assert status == 4
    assert "not installed" in stdout


def test_bench_ends_with_one_json_line(sdturbo):
    status, stdout, _ = sdturbo("bench", "--runs", 3, "--steps", 2, "--backend", "null")
    document = json.loads(stdout.splitlines()[-1])
    assert status == 0
    assert document["runs"] == 3
    parts = document["parts_ms"]
    assert {"tokenizer", "text_encoder", "denoiser", "decoder", "total", "outside_engines"} <= parts.keys()
    assert 0 < parts["outside_engines"]["median"] < parts["total"]["median"]


def test_bench_tells_pictures_a_second_called_and_streamed(sdturbo):
    status, stdout, _ = sdturbo("bench", "--runs", 3, "--throughput", "--backend", "null")
    document = json.loads(stdout.splitlines()[-1])
    assert status == 0
    assert document["pictures_per_second"].keys() == {"calls", "stream"}
    assert all(rate > 0 for rate in document["pictures_per_second"].values())
    assert sum("pictures/s" in line for line in stdout.splitlines()) == 2


def test_unexpected_errors_are_one_sentence(sdturbo, monkeypatch):
    def broken(*_, **__):
        raise ZeroDivisionError("surprise")

    monkeypatch.setattr("sdturbo.pipeline.Pipeline.load", broken)
    status, _, stderr = sdturbo("generate", "x")
    assert status == 70
    assert "ZeroDivisionError: surprise" in stderr
    assert "SDTURBO_TRACEBACK=1" in stderr


def test_installed_commands_answer():
    for module in ("sdturbo", "sdturbo_export"):
        done = subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, text=True, check=True)
        assert "Examples:" in done.stdout


def _manifest(bundle_dir):
    return json.loads((bundle_dir / "bundle.json").read_text())


def test_seeds_of_all_images_are_checked_before_the_first_is_drawn(sdturbo, tmp_path):
    arguments = ["--seed", 2**64 - 1, "--count", 3, "--out", tmp_path / "x.png", "--backend", "null"]
    status, _, stderr = sdturbo("generate", "a fox", *arguments)
    assert status == 2
    assert "image i takes seed + i" in stderr
    assert list(tmp_path.iterdir()) == []


def test_an_output_name_that_is_too_long_is_said(sdturbo):
    status, _, stderr = sdturbo("generate", "a fox", "--out", "x" * 5000, "--backend", "null")
    assert status == 2
    assert "Choose another output path" in stderr


def test_the_device_is_the_one_that_was_named(sdturbo, tmp_path):
    out = tmp_path / "x.png"
    status, stdout, _ = sdturbo("generate", "a cat", "--out", out, "--backend", "null", "--device", "null:1", "--json")
    assert (status, json.loads(stdout)["device"]) == (0, "null:1")
    status, _, stderr = sdturbo("bench", "--backend", "null", "--device", "null:7")
    assert status == 4
    assert "no device 'null:7' here, expected one of cpu, null:0, null:1" in stderr
