"""Bytes that no provider and no client would send, given to every decoder: it may refuse them, in its own words, and
may not crash, hang or grow. `python -m tests.fuzz --seconds 600` for a night; `test_short.py` runs some rounds."""
