"""LightningModules, one file per way of training."""
