"""Tables in files, and the images that they list or hold."""
