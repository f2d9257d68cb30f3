"""Executors run tasks in worker processes: of this machine (`local.py`) or of a Ray cluster (`ray_*.py`); work that uses them."""
