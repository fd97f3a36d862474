"""`python -m sfumato.gateway`."""

from sfumato.gateway.server import main

main()
