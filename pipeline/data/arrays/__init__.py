"""Images as pixels: in arrays of a file, and as the data sets of torchvision give them."""
