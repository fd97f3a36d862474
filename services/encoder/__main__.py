"""`python -m sfumato.encoder`."""

from sfumato.encoder.server import main

main()
