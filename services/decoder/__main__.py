"""`python -m sfumato.decoder`."""

from sfumato.decoder.server import main

main()
