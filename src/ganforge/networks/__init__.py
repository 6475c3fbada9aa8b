"""Generators and discriminators: plain modules without Lightning or Hydra.

They are called as `generator(latent, condition)` and `discriminator(sample, condition)`.
"""
