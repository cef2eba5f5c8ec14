"""Suites of others aimed at our gateway, in environments of their own: `python -m tests.conformance.<name>`."""
