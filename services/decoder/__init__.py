"""The decoder service: the autoencoder, latents to pixels and back."""
