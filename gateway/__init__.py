"""The process clients talk to; the only package that knows the others. Read `pipeline.py` first."""
