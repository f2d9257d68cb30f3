"""WebDataset tars: a walk over the headers, the samples that it finds, and the data source that reads them."""
