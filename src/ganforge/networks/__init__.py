"""Generators and discriminators: plain modules, called as `generator(latent, condition)`, `discriminator(sample, condition)`."""
