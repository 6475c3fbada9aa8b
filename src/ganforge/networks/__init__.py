"""Generators and discriminators: plain modules without Lightning or Hydra.

Called as `generator(latent, condition)` and `discriminator(sample, condition)`.
"""
