"""The denoiser service: the UNet, one forward pass per step of each trajectory."""
