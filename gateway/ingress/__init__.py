"""Bytes from and to clients: which path speaks which dialect, who is asking, how a no is said."""
