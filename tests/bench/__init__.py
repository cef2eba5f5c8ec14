"""Figures, each by a command that anybody can run again. `README.md` says what they were, and of which machine."""
