"""Names of tasks in files, for readers of files that need not import torch."""

MULTICLASS = "multiclass"  # the only task of layerbank 0.2.0 and before, whose files do not name it
