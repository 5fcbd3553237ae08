"""What a model card takes over from the card of the checkpoint that the student was initialised from."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdcli.report.cards import card_data


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "---\nlicense: apache-2.0\nlanguage: en\ndatasets: [imdb, sst2]\ntags: [x]\n---\n# A model\n",
            {"license": "apache-2.0", "language": ["en"], "datasets": ["imdb", "sst2"]},
        ),
        (
            "---\nlicense: [mit, 3]\nlanguage:\n- en\n- de\n---\n",
            {"license": "mit", "language": ["en", "de"]},
        ),
        ("---\nlicense: " + "x" * 1000 + "\n---\n", {}),
        ("---\nlicense: {a: b\n---\n", {}),
        ("---\n- license\n---\n", {}),
        ("# A model without front matter\n", {}),
        (None, {}),
    ],
)
def test_front_matter_of_a_checkpoint(text: str | None, expected: dict[str, object], tmp_path: Path) -> None:
    """A student without the licence that binds it, or a run that ends because a card of somebody else cannot be read."""
    if text is not None:
        (tmp_path / "README.md").write_text(text)
    assert card_data(tmp_path) == expected
