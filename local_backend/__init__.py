"""The local engine: a process of its own that serves a Llama-family model over HTTP in OpenAI's dialect.

Nobody imports this package; the gateway speaks HTTP to it. Importing it costs nothing: torch is loaded in the core
process alone.
"""
