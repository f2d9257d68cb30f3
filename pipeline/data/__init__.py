"""Image sources, one file each, with what they share: decoding, manifests, augmented views, and the data sets of the study.

`sources.open_source` opens a source by the scheme of its URI.
"""

MULTICLASS = "multiclass"
"""Name of the only task of layerbank 0.2.0 and before, whose files do not name it; here, since readers of files need no torch."""
