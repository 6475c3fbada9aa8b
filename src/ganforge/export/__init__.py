"""Exported generators: the files, their model card, and how they are loaded."""
