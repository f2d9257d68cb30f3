"""Jobs: extraction as commands request it (`extract.py`), and studies: a recipe, its units, its plan, its disk space.

Nothing here knows terminals or which process runs what.
"""
