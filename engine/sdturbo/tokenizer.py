"""Prompt -> 77 token ids, and the text that did not fit. Knows no model. The vocabulary is a file of the bundle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from sdturbo.errors import InvalidRequest

MAX_LENGTH = 77  # CLIP's context, begin and end marks included
PAD_ID = 0  # SD 2.x pads with "!" and masks nothing, unless the file's `padding` names another token


@dataclass(frozen=True, slots=True)
class Tokens:
    """input_ids: int64 (1, 77). dropped: the end of the prompt that the model does not see ("" if all fits)."""

    input_ids: NDArray[np.int64]
    dropped: str


class PromptTokenizer:
    """CLIP's byte-pair encoding from the text of a `tokenizer.json`, equal to `transformers` 5 `CLIPTokenizer` id for id."""

    def __init__(self, tokenizer_json: str) -> None:
        self._tokenizer = Tokenizer.from_str(tokenizer_json)
        padding = cast("dict[str, Any] | None", self._tokenizer.padding)  # pyright: ignore[reportUnknownMemberType]
        self._pad_id: int = padding["pad_id"] if padding else PAD_ID
        self._tokenizer.no_truncation()  # cut here, so that the dropped text is known
        self._tokenizer.no_padding()

    def __call__(self, prompt: str) -> Tokens:
        """Encode one prompt. Raises InvalidRequest for text that is not valid Unicode."""
        try:
            encoding = self._tokenizer.encode(prompt)
        except (TypeError, UnicodeError) as error:
            raise InvalidRequest(
                f"The prompt is not valid Unicode text ({error}). Replace lone surrogates before the call."
            ) from error
        ids, dropped = encoding.ids, ""
        if len(ids) > MAX_LENGTH:
            dropped = prompt[encoding.offsets[MAX_LENGTH - 1][0] :]
            ids = [*ids[: MAX_LENGTH - 1], ids[-1]]
        input_ids = np.full((1, MAX_LENGTH), self._pad_id, np.int64)
        input_ids[0, : len(ids)] = ids
        return Tokens(input_ids, dropped)
