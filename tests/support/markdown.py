"""The code blocks of a document, with the remarks of HTML comments before them."""

import re
from dataclasses import dataclass

_BLOCK = re.compile(
    r"(?:^<!-- (?P<remark>not run|run beside|refused here): (?P<reason>[^\n]+?) -->\n)?"
    r"^```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        remark: `not run`, `run beside` (it continues during the next ones), `refused here` (commands may fail, and
            print the reason, several separated by ` | `), or empty.
        reason: the rest of the comment.
    """

    language: str
    text: str
    remark: str
    reason: str


def blocks(markdown: str, language: str = "") -> list[Block]:
    """Return the blocks in order, optionally of one language."""
    found = [
        Block(one["language"], one["text"], one["remark"] or "", one["reason"] or "")
        for one in _BLOCK.finditer(markdown)
    ]
    return [block for block in found if not language or block.language == language]
