"""Every form of a CLIP tokenizer that diffusers loads, and the ids that it gets from it."""

import json
import shutil

import pytest
import torch
from diffusers import StableDiffusionPipeline
from transformers import CLIPTokenizer

from sdturbo.tokenizer import MAX_LENGTH, PromptTokenizer
from sdturbo_export.errors import CheckpointError
from sdturbo_export.weights.checkpoint import open_checkpoint
from sdturbo_export.weights.resolve import TINY_CHECKPOINT
from sdturbo_export.weights.tokenizer_files import tokenizer_json, write_tokenizer

PROMPTS = ("a red cat in the snow", "", "WE'LL see!!! 灯台 🇩🇪", "cat " * 90, "<|endoftext|> !")


@pytest.fixture(scope="module")
def resaved(tmp_path_factory):
    """The embedded model's checkpoint as diffusers and transformers of this environment write it."""
    path = tmp_path_factory.mktemp("resaved") / "model"
    StableDiffusionPipeline.from_pretrained(TINY_CHECKPOINT).save_pretrained(path)
    return path


@pytest.fixture
def folder(tmp_path):
    """SD-Turbo's `tokenizer` folder, which a test may change."""
    write_tokenizer(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def check_ids(folder):
    """The bundle's tokenizer gives the ids that diffusers' pipeline gets of this folder."""
    theirs, ours = CLIPTokenizer.from_pretrained(folder), PromptTokenizer(tokenizer_json(folder))
    for prompt in PROMPTS:
        expected = theirs(prompt, padding="max_length", max_length=MAX_LENGTH, truncation=True).input_ids
        assert ours(prompt).input_ids.tolist() == [expected], prompt


def test_a_checkpoint_saved_again_has_one_file_and_is_the_same_model(resaved):
    assert sorted(file.name for file in (resaved / "tokenizer").iterdir()) == [
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    again, first = open_checkpoint(resaved), open_checkpoint(TINY_CHECKPOINT)
    assert tokenizer_json(resaved / "tokenizer") == tokenizer_json(TINY_CHECKPOINT / "tokenizer")
    for component in ("text_encoder", "unet", "vae"):
        ours, theirs = again.module(component).state_dict(), first.module(component).state_dict()
        assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items()), component


def test_one_file_wins_over_two_as_in_transformers(folder, resaved):
    one_file = json.loads((resaved / "tokenizer" / "tokenizer.json").read_text())
    vocabulary = one_file["model"]["vocab"]
    vocabulary["cat</w>"], vocabulary["dog</w>"] = vocabulary["dog</w>"], vocabulary["cat</w>"]
    before = PromptTokenizer(tokenizer_json(folder))("cat").input_ids
    (folder / "tokenizer.json").write_text(json.dumps(one_file))
    assert PromptTokenizer(tokenizer_json(folder))("dog").input_ids.tolist() == before.tolist()
    check_ids(folder)


def test_merges_as_older_tokenizers_wrote_them(folder, resaved):
    one_file = json.loads((resaved / "tokenizer" / "tokenizer.json").read_text())
    one_file["model"]["merges"] = [" ".join(pair) for pair in one_file["model"]["merges"]]
    shutil.rmtree(folder)
    shutil.copytree(resaved / "tokenizer", folder)
    (folder / "tokenizer.json").write_text(json.dumps(one_file))
    check_ids(folder)


def test_another_token_for_padding_is_kept(folder):
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).unlink()
    assert PromptTokenizer(tokenizer_json(folder))("a cat").input_ids[0, -1] == 49407
    check_ids(folder)


def test_words_that_were_added_need_a_place_in_the_text_encoder(copied):
    tokenizer = CLIPTokenizer.from_pretrained(copied / "tokenizer")
    tokenizer.add_tokens(["<my-cat>"])
    shutil.rmtree(copied / "tokenizer")
    tokenizer.save_pretrained(copied / "tokenizer")
    with pytest.raises(
        CheckpointError, match="1 tokens have no place among the text encoder's 49408, such as '<my-cat>'"
    ):
        open_checkpoint(copied)
    check_ids(copied / "tokenizer")


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"model": {"type": "WordPiece"}}'])
def test_a_broken_file_is_a_fault(copied, text):
    (copied / "tokenizer" / "tokenizer.json").write_text(text)
    with pytest.raises(CheckpointError, match="make no CLIP tokenizer"):
        open_checkpoint(copied)


@pytest.mark.parametrize("names", [["pad_token"], ["bos_token"], ["eos_token"], ["bos_token", "pad_token"]])
def test_a_missing_token_is_a_fault_in_words(copied, names):
    settings = copied / "tokenizer" / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | dict.fromkeys(names)))
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(copied)
    assert [fault.partition(",")[0] for fault in caught.value.faults] == [
        f"tokenizer/tokenizer_config.json: {name} is null" for name in names
    ]


def test_no_form_at_all_is_one_fault(copied):
    for name in ("vocab.json", "merges.txt"):
        (copied / "tokenizer" / name).unlink()
    with pytest.raises(
        CheckpointError, match=r"tokenizer\.json is missing, as are vocab\.json and merges\.txt"
    ) as caught:
        open_checkpoint(copied)
    assert len(caught.value.faults) == 1
