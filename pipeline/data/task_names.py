"""Names of tasks and metrics in files, for readers of files that need not import torch."""

MULTICLASS = "multiclass"  # the only task of layerbank 0.2.0 and before, whose files do not name it
MULTILABEL = "multilabel"
ORDINAL = "ordinal"
REGRESSION = "regression"

ERRORS = ("log_loss", "mae", "rmse")
"""Metrics of which the lowest value is the best; a score by which settings are chosen is their negative."""
