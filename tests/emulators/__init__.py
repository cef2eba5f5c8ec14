"""Wire-accurate providers on real sockets, with scripted answers and faults. They import nothing of the product."""
