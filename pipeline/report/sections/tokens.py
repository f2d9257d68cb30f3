"""What takes the stores' tokens again, and is made on request: likeness of levels, training accuracy, few tokens."""

from __future__ import annotations

from ..page.blocks import Gallery, Section
from ..report_data import ReportData


def section(report_data: ReportData) -> Section | None:
    """The three figures, of the cases whose stores are there."""
    if not report_data.options.tokens:
        report_data.lack(
            "Likeness of levels (CKA), training against test accuracy, accuracy with few tokens",
            "layerbank report RUNS --tokens, with the stores under --cache; it reads all tokens again and takes minutes",
        )
        return None
    cases = [case for case in report_data.cases if report_data.store(case, "train") and report_data.store(case, "test")]
    if not cases:
        report_data.notes.append(
            f"Nothing of --tokens: no stores of these results under {report_data.options.cache_root}. "
            "Give their folder with --cache."
        )
        return None
    from ..from_tokens import token_pictures  # torch, which the rest of a report does without

    pictures = token_pictures(report_data, cases)
    return Section(anchor="tokens", title="From the tokens", blocks=[Gallery(pictures=pictures)]) if pictures else None
