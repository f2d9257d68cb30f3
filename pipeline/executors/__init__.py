"""Executors run tasks in worker processes, on this machine (`local.py`) or on a Ray cluster (`ray_*.py`).

`workers.py` and `studies.py` run an extraction by several workers, and studies, with them.
"""
