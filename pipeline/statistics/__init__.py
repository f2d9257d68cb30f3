"""What results say: scores, intervals, tests, and how alike levels are; from rows and files, never from a model."""
