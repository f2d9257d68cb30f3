"""Splits: the parts of a data set that train, choose and test, how they are divided, and what is recorded of them."""
