"""`python -m sfumato.editor`."""

from sfumato.editor.server import main

main()
