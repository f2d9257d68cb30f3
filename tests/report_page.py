"""Reads a report's page back, with only an HTML parser: tables, figures, links and headings; and which test computes each again."""

from __future__ import annotations

import base64
import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "link", "img", "br", "input", "rect"}
TEXTS = {"p", "li", "h1", "h2", "h3"}


@dataclass
class ReadTable:
    """A table by its heads of columns; cells are text, marks are the tags within."""

    columns: list[str] = field(default_factory=list)
    lines: list[list[str]] = field(default_factory=list)
    marks: list[list[str]] = field(default_factory=list)
    scopes: list[str | None] = field(default_factory=list)
    labelled_by: str | None = None

    def records(self) -> list[dict[str, str]]:
        return [dict(zip(self.columns, line, strict=True)) for line in self.lines]


class ReadPage(HTMLParser):
    """The whole page.

    Attributes:
        tables: id -> table.
        csvs: name of the file -> its lines, of every link that downloads.
        images: attributes of every img and of every svg with a role.
        ids: every id, in order.
        texts: what stands in p, li and headings.
        tags: every opened tag with its attributes.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tables: dict[str, ReadTable] = {}
        self.csvs: dict[str, list[dict[str, str]]] = {}
        self.images: list[dict[str, str | None]] = []
        self.ids: list[str] = []
        self.texts: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._open: list[str] = []
        self._table: ReadTable | None = None
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        if id := attributes.get("id"):
            self.ids.append(id)
        if tag == "img" or attributes.get("role") == "img":
            self.images.append(attributes)
        if tag == "a" and "download" in attributes:
            _, _, content = (attributes["href"] or "").partition(";base64,")
            text = base64.b64decode(content).decode()
            self.csvs[attributes["download"] or ""] = list(csv.DictReader(io.StringIO(text)))
        if tag == "table":
            self._table = ReadTable(labelled_by=attributes.get("aria-labelledby"))
            self.tables[(attributes["id"] or "").removeprefix("t-")] = self._table
        if self._table is not None:
            if tag == "tr" and "thead" not in self._open:
                self._table.lines.append([])
                self._table.marks.append([])
            elif tag == "th" and "thead" in self._open:
                self._table.columns.append("")
                self._table.scopes.append(attributes.get("scope"))
            elif tag in ("td", "th"):
                self._table.lines[-1].append("")
                self._table.marks[-1].append("")
                if tag == "th":
                    self._table.scopes.append(attributes.get("scope"))
            elif tag in ("b", "u", "a"):
                self._table.marks[-1][-1] = tag
        if tag in TEXTS:
            self.texts.append("")
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag
        if tag == "table":
            self._table = None

    def handle_data(self, data: str) -> None:
        if self._open[-1:] in (["script"], ["style"]):
            return
        if self._table is not None:
            if "thead" in self._open and "th" in self._open:
                self._table.columns[-1] += data
            elif {"td", "th"} & set(self._open) and "a" not in self._open:
                self._table.lines[-1][-1] = (self._table.lines[-1][-1] + data).strip()
        elif TEXTS & set(self._open):
            self.texts[-1] += data


COMPUTED_AGAIN = {  # table or figure -> the columns that a test computes again, and which test; a pattern, for numbered ones
    "probes": ("test_one_line_a_probe", "probe,cases,mean accuracy,mean gain,median,min,max,mean rank,best on,p,q"),
    "by-dataset": ("test_the_table_by_data_set_and_its_marks", "data set,*probes"),
    "results": (
        "test_every_result",
        "probe,model,data set,seed,balanced accuracy,95 %,gain,95 % of gain,top-1,top-5,macro F1,parameters,seconds,key",
    ),
    "pairs": ("test_every_two_probes", "probe,other,model,data set,seed,only probe right,only other right,p,q"),
    "alf": ("test_every_two_probes", "other,data sets,median gain of alf,p,q"),
    "attention-spread": (
        "test_attention",
        "probe,model,data set,entropy,80 % in,late third in %,most on,its share in %",
    ),
    "over-seeds": ("test_seeds", "probe,model,data set,seeds,mean,std,95 % of the mean"),
    r"classes-\d+": ("test_every_class", "class,test images,*probes"),
    "settings": (
        "test_every_setting",
        "probe,model,data set,seed,lr,weight decay,dropout,validation,settings,diverged,heads,levels,kinds,compute,"
        "train store,test store",
    ),
    "duplicates-of-splits": (
        "test_images_in_both_splits_are_counted_marked_and_judged_without",
        "data set,test images,also in training,share in %,with another label",
    ),
    "without-duplicates": (
        "test_images_in_both_splits_are_counted_marked_and_judged_without",
        "probe,model,data set,seed,accuracy,without them,difference",
    ),
    r"pairs-of-\d+": (
        "test_images_in_both_splits_are_counted_marked_and_judged_without",
        "test image,training image",
    ),
    "gains.csv": ("test_the_csv_beside_each_figure", "probe,model,dataset,seed,gain,p,q"),
    "gains-by-size.csv": (
        "test_the_csv_beside_each_figure",
        "family,size,probe,mean_gain,standard_error,num_cases",
    ),
    "seeds.csv": ("test_the_csv_beside_each_figure", "probe,model,dataset,seed,percent,deviation"),
    r"attention-\d+-.*.csv": ("test_attention", "line,kind,level,share,entropy,mass80"),
    r"levels-\d+.csv": (
        "test_figures_of_rows_hold_the_accuracies_of_their_rows",
        "model,dataset,probe,level,percent",
    ),
    r"kinds-.*.csv": ("test_figures_of_rows_hold_the_accuracies_of_their_rows", "case,tokens_of_alf,percent"),
    r"heads-\d+.csv": ("test_figures_of_rows_hold_the_accuracies_of_their_rows", "case,heads,percent"),
    r"cka-\d+.csv": ("test_similarity_of_levels_is_the_unbiased_estimate", "level,other,cka"),
    r"cka-to-final-\d+.csv": (
        "test_similarity_to_the_last_level_is_that_of_both_kernels_on_the_images_it_states",
        "line,kernel,num_images,seed,level,cka",
    ),
    "train-test.csv": (
        "test_training_accuracy_is_that_of_a_plain_loop_over_the_training_images",
        "probe,case,train_percent,test_percent",
    ),
    "few-tokens.csv": (
        "test_accuracy_with_few_tokens_is_that_of_a_plain_loop_over_the_images",
        "case,tokens_kept,percent",
    ),
    "choices": (
        "test_what_validation_chose_is_a_line_with_its_cost_beside_what_it_is_made_of",
        "probe,data set,model,seed,chosen,balanced accuracy,made of,difference to it,tokens read,trainings,probe steps,seconds",
    ),
    "paper": (
        "test_results_of_the_papers_models_stand_beside_its_numbers",
        "probe,model,data set,seed,ours,paper,difference,our gain,paper's gain",
    ),
    "paper-means": (
        "test_results_of_the_papers_models_stand_beside_its_numbers",
        "probe,results,mean difference,mean of our gains,mean of the paper's gains",
    ),
}


def require_computed_again(page: ReadPage, probes: Sequence[str]) -> set[str]:
    """Refuse a table, figure or column that no test computes again; returns the patterns that were met."""
    tests = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*report*.py"))
    shown = {name: table.columns for name, table in page.tables.items()}
    of_tables = {f"{name}.csv" for name in shown}
    shown |= {name: list(lines[0]) for name, lines in page.csvs.items() if name not in of_tables}
    met = set()
    for name, columns in shown.items():
        patterns = [one for one in COMPUTED_AGAIN if re.fullmatch(one, name)]
        assert len(patterns) == 1, f"no test computes {name} again"
        test, computed = COMPUTED_AGAIN[patterns[0]]
        assert columns == computed.replace("*probes", ",".join(probes)).split(","), name
        assert f"def {test}(" in tests
        met.add(patterns[0])
    return met
