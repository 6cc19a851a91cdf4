"""CLIP's tokenizer: the files that a checkpoint may hold, and the one `tokenizer.json` that the runtime reads.

transformers reads the files, so every form that diffusers loads gives the ids that diffusers gets. The merges of
`write_tokenizer` are OpenAI CLIP's `bpe_simple_vocab_16e6` (MIT licence), cut to the 48,894 that the model uses.
"""

from __future__ import annotations

import gzip
import json
import shutil
from importlib.resources import as_file, files
from pathlib import Path

from tokenizers import processors
from transformers import CLIPTokenizer

from sdturbo.tokenizer import MAX_LENGTH, PAD_ID
from sdturbo_export.weights.file_names import ONE_FILE, VOCABULARY_FILES
from sdturbo_export.weights.weight_files import read_json

SETTINGS = "tokenizer_config.json"  # may be absent, as may each token in it. Then transformers' defaults hold
BOS, EOS, PAD = "<|startoftext|>", "<|endoftext|>", "!"


def write_tokenizer(directory: Path) -> None:
    """Write SD-Turbo's `tokenizer` folder, byte for byte, to `directory`."""
    text = gzip.decompress(files("sdturbo_export").joinpath("configs/clip_merges.txt.gz").read_bytes()).decode()
    merges = text.split("\n")[1:-1]
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]  # GPT-2's byte symbols that stand for themselves
    symbols = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    words = [*symbols, *(s + "</w>" for s in symbols), *(m.replace(" ", "") for m in merges), BOS, EOS]
    vocabulary = {word: i for i, word in enumerate(words)}
    with as_file(files("sdturbo_export").joinpath("configs/sd-turbo/tokenizer")) as configs:
        shutil.copytree(configs, directory, dirs_exist_ok=True)
    (directory / "merges.txt").write_bytes(text.encode())
    (directory / "vocab.json").write_bytes(
        (json.dumps(vocabulary, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
    )


def tokenizer_faults(directory: Path, vocab_size: object) -> list[str]:
    """What is wrong with the tokenizer in `directory` for a text encoder that knows the ids below `vocab_size`."""
    if not (directory / ONE_FILE).is_file():
        missing = [name for name in VOCABULARY_FILES if not (directory / name).is_file()]
        if len(missing) == len(VOCABULARY_FILES):
            return [
                f"tokenizer/{ONE_FILE} is missing, as are {' and '.join(VOCABULARY_FILES)}. Expected one form of them"
            ]
        if missing:
            return [f"tokenizer/{name} is missing" for name in missing]
    faults: list[str] = []
    settings = read_json(directory / SETTINGS, faults) if (directory / SETTINGS).exists() else {}
    faults += [
        f"tokenizer/{SETTINGS}: {name} is null, but every prompt needs this token. Expected {token!r}, as in SD-Turbo's"
        for name, token in {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD}.items()
        if settings.get(name, token) is None
    ]
    if faults:
        return faults
    try:
        tokenizer = _load(directory)
    except ValueError as error:
        return [f"tokenizer: its files make no CLIP tokenizer: {error}"]
    beyond = [token for token, i in tokenizer.get_vocab().items() if isinstance(vocab_size, int) and i >= vocab_size]
    if beyond:
        return [
            f"tokenizer: {len(beyond)} tokens have no place among the text encoder's {vocab_size}, such as {beyond[0]!r}."
            " Expected the tokenizer that the text encoder was trained with"
        ]
    return []


def tokenizer_json(directory: Path) -> str:
    """The `tokenizers` form of a CLIP tokenizer. Its ids are those of transformers 5 `CLIPTokenizer`.

    A token for padding other than SD-Turbo's is noted in its `padding`.
    Raises ValueError if the files make no tokenizer.
    """
    loaded = _load(directory)
    tokenizer = loaded.backend_tokenizer
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if loaded.pad_token_id != PAD_ID:
        tokenizer.enable_padding(pad_id=loaded.pad_token_id, pad_token=loaded.pad_token, length=MAX_LENGTH)
    bos, eos = loaded.bos_token, loaded.eos_token
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A {eos}", special_tokens=[(bos, loaded.bos_token_id), (eos, loaded.eos_token_id)]
    )
    return tokenizer.to_str()


def _load(directory: Path) -> CLIPTokenizer:
    try:
        return CLIPTokenizer.from_pretrained(str(directory), local_files_only=True)
    except Exception as error:  # transformers and its Rust library raise whatever the files make them meet
        raise ValueError(f"{type(error).__name__}: {error}") from error
