"""Vision transformers: a model id becomes a function from images to tokens. One file a family, with taps, weights and levels."""
