"""Discriminators of DMDX: `latent` judges latents and `pixel` pictures, with the heads of `heads`."""
