"""Studies from recipes: models x data sets x probes x seeds; the recipes that come with layerbank are the TOML files here."""
