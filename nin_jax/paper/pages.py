"""Tables that are generated into a page of the documentation, between two marks.

<!-- table: NAME -->
<!-- end of table -->
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nin_jax import storage
from nin_jax.errors import UserError, nearest

PLACE = re.compile(r"(<!-- table: (.+?) -->\n).*?(<!-- end of table -->)", re.DOTALL)


def markdown(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(map(str, row))} |" for row in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


def fill(page: str, generated: Mapping[str, str]) -> str:
    """The text of a page with its tables replaced by the `generated` ones.

    Raises `UserError` for a mark without a table.
    """

    def place(match: re.Match[str]) -> str:
        if match[2] not in generated:
            raise UserError(f"there is no table {match[2]!r} to generate: {nearest(match[2], generated)}")
        return f"{match[1]}\n{generated[match[2]]}\n\n{match[3]}"

    return PLACE.sub(place, page)


def write(file: Path, generated: Mapping[str, str]) -> None:
    """Replaces the tables in a page."""
    storage.write_whole(file, fill(file.read_text(), generated))
