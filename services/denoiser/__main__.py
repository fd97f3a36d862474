"""`python -m sfumato.denoiser`."""

from sfumato.denoiser.server import main

main()
