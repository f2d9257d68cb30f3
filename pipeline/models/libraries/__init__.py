"""Model libraries: one file for each way to open a model, and what they share: constructor arguments and image processors."""
