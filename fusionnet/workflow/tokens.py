"""How many tokens an encoder's tokenizer makes of strings, and which it cannot read."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from embedcache.config.columns import StringColumn
from embedcache.config.encoder import EncoderConfig
from embedcache.encoder.loading import load_encoder
from embedcache.encoder.tokenizer import load_tokenizer, unreadable_strings
from embedcache.errors import TokenizerError


class Tokens:
    """The tokenizer of an encoder, be it polyBERT's or another."""

    def __init__(self, source: str) -> None:
        """Load it; raises EncoderError where there is none."""
        self.config = EncoderConfig(source=source)
        try:
            self._tokenizer = load_tokenizer(self.config)
        except TokenizerError:  # not polyBERT's
            self.config = EncoderConfig(source=source, tokenizer="any")
            self._tokenizer = load_tokenizer(self.config)
        self._longest = load_encoder(self.config).max_length

    @property
    def entry(self) -> dict[str, Any]:
        """The config's `encoder`, its defaults left out."""
        return self.config.model_dump(include={"source", "tokenizer"}, exclude_defaults=True) or {
            "source": self.config.source
        }

    def unreadable(self, column: StringColumn, texts: Sequence[str]) -> dict[str, str]:
        """Return the strings of a column that the encoder cannot read, with the reason."""
        return unreadable_strings(self._tokenizer, column, texts, self._longest)

    def count(self, texts: Sequence[str], num_rows: np.ndarray) -> tuple[int, int]:
        """Return the tokens of S distinct strings, and those of all rows; `num_rows` is [S]."""
        if not texts:
            return 0, 0
        lengths = np.array([len(ids) for ids in self._tokenizer(list(texts))["input_ids"]])
        return int(lengths.sum()), int((lengths * num_rows).sum())
