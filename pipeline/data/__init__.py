"""Image sources, one file each, with what they share: decoding, manifests, augmented views, and the data sets of the study.

`sources.open_source` opens a source by the scheme of its URI.
"""
