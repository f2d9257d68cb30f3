"""Stage two: from a store to trained probes, rows of results, and what they say of new images."""
