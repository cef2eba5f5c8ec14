"""What the engine's speed is measured with; `python -m tests.bench.engine --help`."""
