"""Jobs: extraction as commands request it, and studies, which a recipe describes: models x data sets x probes x seeds."""
