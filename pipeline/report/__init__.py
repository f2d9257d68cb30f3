"""What a study says: statistics over results, figures, the paper's numbers, the catalogue of its data sets.

A library of pure functions: rows of results.jsonl and saved arrays go in, tables, tests and pictures come out. Nothing in it
trains, prints or knows the command line.

    results    scores, summaries, significance, bootstrap     from rows to tables, and what may be said of them
               predictions, duplicates, dataset_table         test.npz; images in both splits; the table of the study
    tokens     similarity, attention, saved                   CKA between levels; where probes look; saved probes read again
    choices    selection                                      few levels that are enough, the best settings of a bank
    the study  catalogue, hub, paper                          its data sets, where they lie, its published numbers
    the report gather, tested, findings, material, sections   one HTML page of a folder of runs: what it is made of, and its parts
               repeated, examples, thumbnails, from_tokens    images in both splits, images to show, figures from tokens
               records, report, page                          what is written
    pictures   figures                                        a column wide, with their numbers

Import the modules themselves: most take neither torch nor matplotlib, and this package imports none of them.
"""

from __future__ import annotations

__all__: list[str] = []
