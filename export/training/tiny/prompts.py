"""Training prompts: captions among words without meaning here, as token ids, and the ids that have one."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from sdturbo.tokenizer import PromptTokenizer
from sdturbo_export.weights.tokenizer_files import BOS, EOS, PAD, tokenizer_json, write_tokenizer
from training.tiny.captions import COLOUR_WORDS, PLACE_PHRASES, SUBJECT_WORDS, caption, plural, vocabulary
from training.tiny.scenes import Combination, Scene

STRANGE = 0.2  # of the prompts hold 1 to 5 strange words
# drawn where a prompt names none
USUAL_SUBJECT, USUAL_COLOUR, USUAL_PLACE = Combination("cat", "orange", "meadow")


class Prompts:
    """CLIP's tokenizer, the ids of the captions' words, and all other words that are one token."""

    def __init__(self) -> None:
        with TemporaryDirectory() as folder:
            write_tokenizer(Path(folder))
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

    def plurals(self) -> NDArray[np.int64]:
        """Pairs of ids, (n, 2): a piece of a plural that no singular has, and the piece of a singular in its place, or -1."""
        pairs: dict[int, int] = {}
        marks = {self._vocabulary[mark] for mark in (BOS, EOS, PAD)}
        singulars = {word for words in SUBJECT_WORDS.values() for word in words}
        known = {int(i) for word in singulars for i in self.ids(word)}
        for word in singulars:
            for one, many in zip(self.ids(word), self.ids(plural(word)), strict=True):
                if many not in known:
                    pairs[int(many)] = -1 if int(one) in marks else int(one)
        return np.array(sorted(pairs.items()), np.int64)

    @cached_property
    def strange(self) -> tuple[str, ...]:
        """Words of three letters and more that are one token and no part of the captions' words."""
        known = set(self.known.tolist())
        whole = (token.removesuffix("</w>") for token in self._vocabulary if token.endswith("</w>"))
        return tuple(sorted(word for word in whole if self._is_strange(word, known)))

    def of(self, scene: Scene, rng: np.random.Generator, *, vague: bool = False) -> str:
        """A prompt for which the scene is to be drawn. vague: it names no subject, but perhaps a strange thing in its place."""
        if vague:
            words = self._vague(scene, rng)
        else:
            words = caption(Combination(scene.subject, scene.colour, scene.scene), rng).split()
        if rng.random() < STRANGE:
            for word in self._strangers(rng, 6):
                words.insert(int(rng.integers(len(words) + 1)), word)
        return " ".join(words)

    def _vague(self, scene: Scene, rng: np.random.Generator) -> list[str]:
        """`a purple dragon in the snow`, without the colour or the place that is usual in half of the prompts."""
        colours, places = COLOUR_WORDS[scene.colour], PLACE_PHRASES[scene.scene]
        words = ["a"] if rng.random() < 0.7 else []
        if scene.colour != USUAL_COLOUR or rng.random() < 0.5:
            words.append(colours[rng.integers(len(colours))])
        if rng.random() < 0.8:
            words += self._strangers(rng, 3)
        if scene.scene != USUAL_PLACE or rng.random() < 0.5:
            words += places[rng.integers(len(places))].split()
        return words

    def _strangers(self, rng: np.random.Generator, end: int) -> list[str]:
        """1 to end - 1 strange words."""
        return [
            str(word) for word in (self.strange[i] for i in rng.integers(len(self.strange), size=rng.integers(1, end)))
        ]

    def _is_strange(self, word: str, known: set[int]) -> bool:
        return len(word) > 2 and word.isascii() and word.isalpha() and self._vocabulary[f"{word}</w>"] not in known


def is_usual(scene: Scene) -> bool:
    """Is this what vague prompts may draw?"""
    return scene.subject == USUAL_SUBJECT
