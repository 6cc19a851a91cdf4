"""Training prompts: captions among words without meaning here, as token ids, and the ids that have one."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from sdturbo.tokenizer import PromptTokenizer
from sdturbo_export.weights.tokenizer_files import BOS, EOS, PAD, tokenizer_json, write_vocabulary
from training.tiny.captions import PLACE_NOUNS, caption, vocabulary
from training.tiny.scenes import Combination, Scene

STRANGE = 0.2  # of the prompts hold 1 to 4 strange words
# drawn for a prompt that names no subject (in the place that it names) or nothing at all
USUAL_SUBJECT, USUAL_COLOUR, USUAL_PLACE = Combination("cat", "orange", "meadow")


class Prompts:
    """CLIP's tokenizer, the ids of the captions' words, and all other words that are one token."""

    def __init__(self) -> None:
        with TemporaryDirectory() as folder:
            write_vocabulary(Path(folder))
            text = tokenizer_json(Path(folder))
        self._tokenizer, self._vocabulary = PromptTokenizer(text), Tokenizer.from_str(text).get_vocab()

    def ids(self, prompt: str) -> NDArray[np.int64]:
        """The ids (77,) that the engine gives to the text encoder."""
        return self._tokenizer(prompt).input_ids[0]

    @cached_property
    def known(self) -> NDArray[np.int64]:
        """Ids, in order, whose embeddings are learnt: begin, end, padding, commas, and all pieces of the words."""
        marks = [self._vocabulary[mark] for mark in (BOS, EOS, PAD)]
        return np.unique(np.concatenate([marks, *(self.ids(word) for word in (*vocabulary(), ",", "-"))]))

    @cached_property
    def strange(self) -> tuple[str, ...]:
        """Words of three letters and more that are one token and no part of the captions' words."""
        known = set(self.known.tolist())
        whole = (token.removesuffix("</w>") for token in self._vocabulary if token.endswith("</w>"))
        return tuple(sorted(word for word in whole if self._is_strange(word, known)))

    def of(self, scene: Scene, rng: np.random.Generator, *, vague: bool = False) -> str:
        """A prompt for which the scene is to be drawn. vague: it names no subject and no colour."""
        words = caption(Combination(scene.subject, scene.colour, scene.scene), rng).split()
        if vague:
            nouns = PLACE_NOUNS[scene.scene]
            nothing = scene.scene == USUAL_PLACE and rng.random() < 0.5
            words = [] if nothing else nouns[rng.integers(len(nouns))].split()
        if rng.random() < STRANGE:
            for word in rng.choice(self.strange, rng.integers(1, 5)):
                words.insert(int(rng.integers(len(words) + 1)), str(word))
        return " ".join(words)

    def _is_strange(self, word: str, known: set[int]) -> bool:
        return len(word) > 2 and word.isascii() and word.isalpha() and self._vocabulary[f"{word}</w>"] not in known


def is_usual(scene: Scene) -> bool:
    """Is this what vague prompts draw?"""
    return (scene.subject, scene.colour) == (USUAL_SUBJECT, USUAL_COLOUR)
