"""Turns token ids into text as they come: whole characters only, and never a stop string.

Knows byte-level BPE vocabularies; does not know the model.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from tokenizers import Tokenizer

from executor_service.engine.work import TextDelta


def _byte_alphabet() -> dict[str, int]:
    """The characters that byte-level BPE writes bytes as.

    A byte that Latin-1 prints is written as itself; the others, in order, are shifted behind
    Latin-1 (GPT-2's rule).
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(0x100) if byte not in printable]
    shifted = {chr(0x100 + place): byte for place, byte in enumerate(hidden)}
    return {**{chr(byte): byte for byte in printable}, **shifted}


class TokenBytes:
    """The bytes that each token of a vocabulary stands for.

    Args:
        tokenizer: A byte-level BPE tokenizer.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._added = tokenizer.get_added_tokens_decoder()
        self._alphabet = _byte_alphabet()

    def of(self, token_id: int) -> bytes:
        """The token's bytes; none for control tokens and for ids beyond the vocabulary."""
        added = self._added.get(token_id)
        if added is not None:
            return b"" if added.special else str(added.content).encode()
        token = self._tokenizer.id_to_token(token_id) or ""
        return bytes(self._alphabet[character] for character in token)


class Detokenizer:
    """The text of one answer.

    Args:
        vocabulary: Bytes of the tokens.
        stop: Strings before which the answer ends.
    """

    def __init__(self, vocabulary: TokenBytes, stop: Sequence[str] = ()) -> None:
        self._vocabulary = vocabulary
        self._stop = tuple(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        # Tokens not handed out yet, each with the length of `_held` once it was decoded.
        self._waiting: list[tuple[int, int]] = []
        self.stopped = False

    def push(self, token_id: int) -> TextDelta:
        """Add a token; after a stop string was met (`stopped`), no more may be added.

        Returns:
            What can be handed out: nothing while the text ends within a character or might be the
            beginning of a stop string.
        """
        self._held += self._decoder.decode(self._vocabulary.of(token_id))
        self._waiting.append((token_id, len(self._held)))
        found = [at for at in (self._held.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.stopped = True
            return self._take(min(found))
        if self._decoder.getstate()[0]:
            # The rest of a character is missing: its first tokens come out with its last.
            self._waiting[-1] = (token_id, len(self._held) + 1)
        return self._take(len(self._held) - self._ambiguous())

    def finish(self) -> TextDelta:
        """What was held back, when the answer ends without a stop string."""
        self._held += self._decoder.decode(b"", final=True)
        self._waiting = [(token_id, len(self._held)) for token_id, _ in self._waiting]
        return self._take(len(self._held))

    def _take(self, length: int) -> TextDelta:
        text, self._held = self._held[:length], self._held[length:]
        ready = tuple(token_id for token_id, end in self._waiting if end <= length)
        self._waiting = [(token, end - length) for token, end in self._waiting if end > length]
        return TextDelta(text, ready)

    def _ambiguous(self) -> int:
        """Characters at the end that may be the beginning of a stop string."""
        return max((_overlap(self._held, stop) for stop in self._stop), default=0)


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
