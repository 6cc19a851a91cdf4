import shutil
from importlib.resources import files

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from sdturbo.errors import InvalidRequest
from sdturbo.tokenizer import MAX_LENGTH, PAD_ID, PromptTokenizer

WORDS = [
    *("a photo of a cat", "it's", "WE'LL", "naïve", "straße", "ﬁne", "12345", "½ ٣ ४", "3.14", "don’t", "¯\\_(ツ)_/¯"),
    *("кот на окне", "قطة جميلة", "खूबसूरत बिल्ली", "窓辺の猫が好き", "고양이", "แมวน่ารัก", "ΑΣ", "İstanbul", "Ǆ"),
    *("👩‍👩‍👧‍👦", "🏳️‍🌈", "👍🏽", "🇩🇪", "e\u0301", "\u0301", "각", "\u200b", "\u200d", "\ufeff", "\ufffd", "\U0010ffff"),
    *("!", "!!!", " ! ", "\0", "\x07", "\x1c", "\x85", "\t", "\n", "\r\n", "\u00a0", "\u2028", "\u3000", "  "),
    *("<|endoftext|>", "<|startoftext|>", "<|EndOfText|>", "<|endof", "text|>", "</w>"),
]
SCALARS = st.characters(exclude_categories=["Cs"])
PROMPTS = st.lists(st.sampled_from(WORDS) | st.text(SCALARS, max_size=5), max_size=60).flatmap(
    lambda parts: st.sampled_from(["", " "]).map(lambda gap: gap.join(parts))
)


@pytest.fixture(scope="module")
def tokenizer(clip_files):
    return PromptTokenizer((clip_files / "tokenizer.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def clip(clip_files, tmp_path_factory):
    """transformers' tokenizer of SD-Turbo, from vocab.json and merges.txt."""
    directory = tmp_path_factory.mktemp("transformers")
    for file in (clip_files / "vocab.json", clip_files / "merges.txt"):
        shutil.copy(file, directory)
    for file in files("sdturbo_export").joinpath("configs/sd-turbo/tokenizer").iterdir():
        (directory / file.name).write_bytes(file.read_bytes())
    return CLIPTokenizer.from_pretrained(directory)


@given(prompt=PROMPTS)
@example(prompt="")
@example(prompt="cat " * 75)
@example(prompt="cat " * 76)
@example(prompt="👩‍👩‍👧‍👦" * 30)
def test_ids_equal_transformers(tokenizer, clip, prompt):
    expected = clip(prompt, padding="max_length", max_length=MAX_LENGTH, truncation=True).input_ids
    assert tokenizer(prompt).input_ids.tolist() == [expected]


@given(prompt=PROMPTS)
@example(prompt="cat " * 75)
@example(prompt="cat " * 76)
def test_dropped_text_is_the_end_of_the_prompt_and_empty_iff_all_fits(tokenizer, clip, prompt):
    dropped = tokenizer(prompt).dropped
    assert prompt.endswith(dropped)
    assert (dropped == "") == (len(clip(prompt, verbose=False).input_ids) <= MAX_LENGTH)


def test_dropped_text_starts_at_the_first_token_that_does_not_fit(tokenizer):
    assert tokenizer("cat " * 75 + "dog bird").dropped == "dog bird"


def test_short_prompts_are_padded_with_exclamation_marks(tokenizer):
    assert tokenizer("a cat").input_ids[0, 4:].tolist() == [PAD_ID] * (MAX_LENGTH - 4)


@pytest.mark.parametrize("prompt", ["\ud800", "a cat \udfff", "\ude00\ud83d"])
def test_lone_surrogates_are_refused(tokenizer, prompt):
    with pytest.raises(InvalidRequest, match="not valid Unicode"):
        tokenizer(prompt)
