"""Handing a generator over: files, a card about them, and what loads them."""
