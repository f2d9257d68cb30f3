"""Rows of results: their keys, their files on the disk, and reading and summarising them."""
