"""The images that come with Python packages: what there is, where it lies, and the source that reads it."""
