"""How a request to a provider proves who we are: one file per scheme."""
