"""Whether the output that a page shows is what its commands print.

    python -m tests.shown PAGE.md FILE

FILE holds what the commands of the page printed, in their order. Each line of a block without a language must be in it, in
the order of the page; "..." stands for lines that are not shown. What differs between machines may differ: speeds, times,
losses, errors on the way, and the numbers of a map.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

NUMBER = r"-?[\d.,]*\d(?:e[-+]\d+)?"
LOOSE = (
    re.compile(rf'(?<=loss )(?:{NUMBER})|(?<="loss": ){NUMBER}|(?<=error_pct ){NUMBER}|(?<=images_per_s ){NUMBER}'),
    re.compile(rf"{NUMBER}(?= s of training)|{NUMBER}(?= images/s)"),
    re.compile(r"(?<=[\[ ])-?\d+(?=(?: +-?\d+)*\]\]?$)"),  # a row of a map
)


def plain(line: str) -> str:
    """A line without what may differ, and without the widths of columns of numbers."""
    for pattern in LOOSE:
        line = pattern.sub("N", line)
    return re.sub(r" +(?=N)", " ", re.sub(r"(?<=\[) +", "", line)).rstrip()


def missing(page: str, said: str) -> list[str]:
    """The lines that a page shows and that were not printed: the first such, and all after it."""
    lacking, rest = [], iter([plain(line) for line in said.splitlines()])
    for shown in re.findall(r"^```\n(.*?)^```$", "\n".join(_without_commands(page)), re.DOTALL | re.MULTILINE):
        for line in shown.splitlines():
            if line != "..." and plain(line) not in rest:  # `in` goes on from the line before
                lacking.append(line)
    return lacking


def _without_commands(page: str) -> list[str]:
    """The lines of a page without its blocks of a language, whose ends would look like beginnings."""
    kept, inside = [], False
    for line in page.splitlines():
        if re.fullmatch(r"```\w+", line):
            inside = True
        elif not inside:
            kept.append(line)
        elif line == "```":
            inside = False
    return kept


if __name__ == "__main__":
    if lacking := missing(Path(sys.argv[1]).read_text(), Path(sys.argv[2]).read_text()):
        sys.exit(f"{sys.argv[1]} shows what was not printed: {lacking[0]!r}")
