"""The report: one HTML page of a folder of runs, its figures and its files.

report, gather      rows in, page and files out
report_data         the rows of one protocol with their tables, predictions and stores; `ReportFigure`, an entry of the registry
figures             the registry of figures and tables, one file for each part of the page
style, page         how figures look and are written; blocks to HTML
saved               saved probes on a store (takes torch)
"""
