"""A model id becomes one function from images to tokens: families of models, taps, weights, levels."""
