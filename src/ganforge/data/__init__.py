"""DataModules, one file per dataset on top of `base.py`."""
