"""How bytes reach a provider. `base.py` is the contract; `http1.py` is the hot path, `httpx.py` is for odd networks."""
