"""ganforge: train, measure and compare generative adversarial networks."""

__version__ = "0.1.0"
