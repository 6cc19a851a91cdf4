"""CLIP's vocabulary, and the one `tokenizer.json` that the runtime reads.

The merges are OpenAI CLIP's `bpe_simple_vocab_16e6` (MIT licence), cut to the 48,894 that the model uses.
"""

from __future__ import annotations

import gzip
import json
from importlib.resources import files
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE

VOCABULARY_FILES = ("vocab.json", "merges.txt")
BOS, EOS, PAD = "<|startoftext|>", "<|endoftext|>", "!"
_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def write_vocabulary(directory: Path) -> None:
    """Write `vocab.json` and `merges.txt`, byte for byte as in SD-Turbo's `tokenizer` folder."""
    text = gzip.decompress(files("sdturbo_export").joinpath("configs/clip_merges.txt.gz").read_bytes()).decode()
    merges = text.split("\n")[1:-1]
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]  # GPT-2's byte symbols that stand for themselves
    symbols = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    words = [*symbols, *(s + "</w>" for s in symbols), *(m.replace(" ", "") for m in merges), BOS, EOS]
    vocabulary = {word: i for i, word in enumerate(words)}
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "merges.txt").write_bytes(text.encode())
    (directory / "vocab.json").write_bytes(
        (json.dumps(vocabulary, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
    )


def tokenizer_json(directory: Path) -> str:
    """The `tokenizers` form of the two files of a CLIP tokenizer. Ids equal those of transformers 5 `CLIPTokenizer`.

    Raises ValueError if the files do not belong together.
    """
    vocabulary, merges = (str(directory / name) for name in VOCABULARY_FILES)
    try:
        model = BPE.from_file(
            vocabulary, merges, unk_token=EOS, end_of_word_suffix="</w>", continuing_subword_prefix=""
        )
    except Exception as error:  # the Rust library raises bare Exception
        raise ValueError(str(error)) from error
    tokenizer = Tokenizer(model)
    bos, eos = tokenizer.token_to_id(BOS), tokenizer.token_to_id(EOS)
    if bos is None or eos is None or tokenizer.token_to_id(PAD) != 0:
        raise ValueError(f"the vocabulary lacks {BOS} or {EOS}, or {PAD!r} is not id 0")
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A {EOS}", special_tokens=[(BOS, bos), (EOS, eos)]
    )
    tokenizer.add_special_tokens(
        [AddedToken(PAD, normalized=False), AddedToken(BOS, normalized=True), AddedToken(EOS, normalized=True)]
    )
    return tokenizer.to_str()
