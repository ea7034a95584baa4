"""The texts that scores rest on are frozen."""

import hashlib

from llmnb import handbook

FILES = [*sorted(handbook.RESOURCES.glob("*.json")), *sorted(handbook.FOLDER.glob("*.md"))]


def test_the_texts_are_frozen():
    """Scores on them are compared across versions."""
    lines = [f"{file.name}\n{file.read_text(encoding='utf-8')}" for file in FILES]
    digest = hashlib.sha256("".join(lines).encode("utf-8")).hexdigest()
    assert digest[:16] == "4196b349c60e13c0", (
        "A text was changed. If that is intended, run `python dev/check_texts.py`, then update "
        f"the digest here to {digest[:16]}."
    )
