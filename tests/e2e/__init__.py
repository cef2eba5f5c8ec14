"""Whole gateways: real sockets, real SDKs, real SQL and Valkey, emulated providers."""
