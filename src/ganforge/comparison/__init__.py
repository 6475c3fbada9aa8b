"""Runs side by side: read back, in tables, as a page."""
