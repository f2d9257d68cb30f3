"""Heads, one file each, and their registry: a plain module (`HeadModule`) and a description (`HeadType`) a head."""

from .head import Form, HeadModule, HeadType, Solver
from .registry import HEADS, Head, check_task, make_probe

__all__ = ["HEADS", "Form", "Head", "HeadModule", "HeadType", "Solver", "check_task", "make_probe"]
