"""Work on whole stores: listing, verifying and repairing, forecasting their size, HDF5, upgrading and merging."""
