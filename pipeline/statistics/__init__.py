"""Statistics of results: scores, intervals, tests, similarity of levels; from rows and saved arrays, never from a model.

    scores, significance, dataset_table     tables of accuracies and gains; means and ranks; tests; the table by data set
    predictions, tested, findings           the saved predictions of a case, and which probe wins it
    attention, duplicates, similarity       attention maps; test images that are also training images; CKA between levels
    paper                                   the published numbers, and ours beside them

Import the modules themselves: only `similarity` takes torch.
"""
