"""Tokens to money: usage journal, prices, rating and the double-entry ledger. Knows no HTTP and no provider."""
