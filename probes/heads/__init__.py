"""Heads, one file each, and their registry: a plain module (`HeadModule`) and a description (`HeadType`) a head."""

from .head_module import HeadModule
from .head_type import Form, HeadType, Solver
from .registry import HEADS, Head, make_probe

__all__ = ["HEADS", "Form", "Head", "HeadModule", "HeadType", "Solver", "make_probe"]
