"""`python -m gateway` is `farebox`."""

from gateway.cli import main

main()
