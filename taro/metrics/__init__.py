"""Scores of predictions: protocols applied, intervals, comparisons, figures that others published."""
