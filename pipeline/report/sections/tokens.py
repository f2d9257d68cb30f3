"""What takes the stores' tokens again, and is made on request: likeness of levels, training accuracy, few tokens."""

from __future__ import annotations

from ..page.blocks import Gallery, Section
from ..report_data import Material


def section(material: Material) -> Section | None:
    """The three figures, of the cases whose stores are there."""
    if not material.wishes.tokens:
        material.lack(
            "Likeness of levels (CKA), training against test accuracy, accuracy with few tokens",
            "layerbank report RUNS --tokens, with the stores under --cache; it reads all tokens again and takes minutes",
        )
        return None
    cases = [case for case in material.cases if material.store(case, "train") and material.store(case, "test")]
    if not cases:
        material.notes.append(
            f"Nothing of --tokens: no stores of these results under {material.wishes.cache_root}. Give their folder with --cache."
        )
        return None
    from ..from_tokens import token_pictures  # torch, which the rest of a report does without

    pictures = token_pictures(material, cases)
    return Section(anchor="tokens", title="From the tokens", blocks=[Gallery(pictures=pictures)]) if pictures else None
