"""The language guard: local tokenizers know how much of a text their model has never seen.

A vector of unknown tokens looks like any other and means nothing, so a job says how much there is, marks the
rows, and stops where it is most of the text.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vecmill.core.errors import JobError
from vecmill.core.events import Notice
from vecmill.embedder.embedder import CHARACTERS_PER_TOKEN, TOKENS_THAT_TELL, UNKNOWN_SHARE
from vecmill.embedder.rows import Prepared
from vecmill.jobs.layout import WARNING_SHORT, WARNING_UNKNOWN
from vecmill.jobs.state import Counts

UNKNOWN_WARNED = 0.05

CHARACTERS_PER_TOKEN_WARNED = 3.3
"""A job whose texts have fewer is in another language or is code.

Measured with the built-in model's vocabulary: English 3.5 (text messages) to 5.4 (abstracts); German, Spanish
and French 2.7 to 3.2; Polish and Turkish 2.2; Arabic, Greek, Ukrainian and Japanese 1.0 to 1.2.
"""

_TOKENS_THAT_SAY_SOMETHING = 200


@dataclass(frozen=True, slots=True)
class Guard:
    """Watches a job's texts. `allow_any` goes on where it would stop."""

    allow_any: bool

    def look(self, ready: Prepared, before: Counts, model: str) -> Counts:
        """Look at a window before it is embedded.

        Args:
            ready: The window's tokenized texts.
            before: What the job has seen so far.
            model: Its name, for the message.

        Returns:
            What this window adds to the tokens, unknown tokens and characters seen.

        Raises:
            JobError: More than half of all tokens so far is unknown to the model.
        """
        seen = Counts(
            seen_tokens=int(np.maximum(ready.encoded.tokens - ready.overhead, 0).sum()),
            unknown_tokens=int(ready.encoded.unknown.sum()),
            characters=sum(map(len, ready.texts)),
        )
        share = _unknown_share(before + seen)
        if share > UNKNOWN_SHARE and not self.allow_any:
            raise JobError(
                f"{share:.0%} of the tokens are unknown to {model}: the text is in a language or script "
                f"it was not made for, and the vectors would mean little. Use a multilingual model (-m), or "
                f"--any-language to go on all the same"
            )
        return seen

    def notices(self, total: Counts) -> list[Notice]:
        """Return what a person should know about the job's texts when it is done."""
        if total.seen_tokens < _TOKENS_THAT_SAY_SOMETHING:
            return []
        share = _unknown_share(total)
        if share > UNKNOWN_WARNED:
            return [
                Notice(
                    "unknown_tokens",
                    f"{share:.0%} of the tokens are unknown to the model ({total.warned} rows marked in the "
                    f"column warning): check the language, or use a multilingual model",
                )
            ]
        per_token = total.characters / total.seen_tokens
        if per_token < CHARACTERS_PER_TOKEN_WARNED:
            return [
                Notice(
                    "short_tokens",
                    f"the texts have {per_token:.1f} characters per token, English about 4.4: if they are in "
                    f"another language or are code, a model made for it will serve better",
                )
            ]
        return []


def warned_rows(ready: Prepared) -> dict[int, str]:
    """Return the rows the model can hardly read, with the warning their `warning` column gets."""
    content = np.maximum(ready.encoded.tokens - ready.overhead, 1)
    characters = np.fromiter(map(len, ready.texts), dtype=np.int64, count=len(ready.texts))
    unknown = ready.unknown_share() > UNKNOWN_SHARE
    short = (characters / content < CHARACTERS_PER_TOKEN) & (content >= TOKENS_THAT_TELL)
    warnings = np.where(unknown, WARNING_UNKNOWN, np.where(short, WARNING_SHORT, ""))
    with_text = np.flatnonzero(ready.distinct >= 0)
    named = warnings[ready.distinct[with_text]]
    return {int(row): str(name) for row, name in zip(with_text, named, strict=True) if name}


def _unknown_share(counts: Counts) -> float:
    return counts.unknown_tokens / max(counts.seen_tokens, 1)
