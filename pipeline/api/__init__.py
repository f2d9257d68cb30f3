"""What `layerbank` offers in Python: data, models, tokens, results and classifiers. The names are those of `layerbank.__all__`."""
