"""How bytes reach a provider. `base.py` is the contract; `http1.py` carries the hot path, `httpx.py` the odd networks."""
