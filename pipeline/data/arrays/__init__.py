"""Images that lie as pixels in arrays of a file."""
