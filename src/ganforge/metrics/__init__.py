"""Metrics: feature extractors, metrics on features and on pairs, and the callback that computes them."""
