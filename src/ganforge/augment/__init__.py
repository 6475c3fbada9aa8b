"""Augmentation of what the discriminator sees: what `conf/augment/` names."""

from ganforge.augment.augmentations import ADA, Augmentation, DiffAugment, Fixed, InstanceNoise, Pipeline

__all__ = ["ADA", "Augmentation", "DiffAugment", "Fixed", "InstanceNoise", "Pipeline"]
