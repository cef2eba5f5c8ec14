"""One package per wire format, each four maps against the neutral form. `providers.dialects.base` is the contract."""
