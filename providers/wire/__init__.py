"""Bytes to frames and back: SSE, AWS event streams, JSON. No I/O, no meaning."""
