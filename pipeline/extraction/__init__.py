"""Stage one: images through a model into a store, in one process or in several."""
