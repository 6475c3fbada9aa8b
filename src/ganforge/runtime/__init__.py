"""Errors, files, downloads, devices and overrides, used by all other packages."""
