"""Metrics: what of, on which features, in which slot."""
