"""Runs side by side: read from their folders, compared, and shown in tables and an HTML page."""
