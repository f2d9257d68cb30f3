"""Probes that are solved, not trained: ridge, logistic regression, nearest neighbours."""
