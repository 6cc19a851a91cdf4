"""The rows of `make bench-peers`."""

import pytest

from benchmarks.pairs import PAIRS
from benchmarks.peer_tables import is_equal

BY_NAME = {pair.name: pair for pair in PAIRS}
# what is asked -> theirs (program begins with, decoder, precision), ours (decoder, precision), backend
ASKED = {
    ("OpenVINO GenAI, static", "KL", "bf16", "KL", "bf16", "openvino"): 1.25,
    ("OpenVINO GenAI, static", "KL", "bf16", "KL", "int8", "openvino"): 2.1,
    ("OpenVINO GenAI, static", "KL", "int8", "KL", "int8", "openvino"): 1.9,
    ("OpenVINO GenAI, static", "tiny", "bf16", "tiny", "bf16", "openvino"): 1.12,
    ("OpenVINO GenAI, static", "tiny", "int8", "tiny", "int8", "openvino"): 1.3,
    ("sdturbo", "KL", "bf16", "tiny", "int8", "openvino"): 4.2,
    ("optimum-onnx", "KL", "fp32", "KL", "fp32", "onnxruntime"): 1.12,
}


def row_of(pair):
    return {"key": {"row": pair.name}, "theirs": pair.theirs.words, "ours": pair.ours.words}


def test_every_figure_that_is_asked_for_has_its_row():
    rows = {
        (
            pair.theirs.program,
            pair.theirs.decoder,
            pair.theirs.precision,
            pair.ours.decoder,
            pair.ours.precision,
            pair.ours.arguments[0],
        ): pair.asked
        for pair in PAIRS
        if pair.asked is not None
    }
    assert rows == ASKED


def test_names_are_single_and_fit_a_command_line():
    assert len(BY_NAME) == len(PAIRS)
    assert all(name == name.strip().lower() and " " not in name for name in BY_NAME)


def test_every_row_has_its_pairs():
    few = {pair.name: pair.runs for pair in PAIRS if pair.runs < 9}
    assert few == {"stable-diffusion.cpp": 3}


def test_no_row_of_the_leading_table_mixes_decoders_or_precisions():
    mixed = {pair.name for pair in PAIRS if not is_equal(row_of(pair))}
    assert mixed == {"genai-int8-weights", "genai-bf16-beside-int8", "kl-beside-tiny-int8", "stable-diffusion.cpp"}


@pytest.mark.parametrize("pair", PAIRS, ids=BY_NAME)
def test_what_a_form_loads_is_of_its_decoder_and_precision(pair):
    for form in (pair.theirs, pair.ours):
        conversion = form.conversion
        if conversion:
            assert conversion.decoder == (form.decoder == "tiny")
            assert ("int8" in conversion.name) == ("int8" in form.precision)


def test_settings_say_what_each_form_was_given():
    for pair in PAIRS:
        words = pair.theirs.settings
        assert words
        if pair.theirs.program == "OpenVINO GenAI, static":
            assert "reshaped to 1×512×512" in words
            assert "CACHE_DIR" in words
            assert ("calibrated on our prompts" in words) == (pair.theirs.precision == "int8")
            assert ("AutoencoderTiny" in words) == (pair.theirs.decoder == "tiny")
