"""Which first lines of a table are headers, and which are rows like the others."""

from __future__ import annotations

import pytest

from kdcli.data.headers import is_first_row

BODY = [["good film", "good"], ["bad film", "bad"], ["dull film", "bad"]]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (["text", "label"], False),
        (["fine film", "good"], True),
        (["a film that nobody will like", "mixed"], True),
    ],
)
def test_first_lines(line: list[str], expected: bool) -> None:
    """A first row of short texts whose label the rows below repeat is taken for the names of the columns, and is lost."""
    assert is_first_row(line, BODY) is expected
    assert is_first_row(line, [*BODY, line]) is expected  # joined files repeat the header
