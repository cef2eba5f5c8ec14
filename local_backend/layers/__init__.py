"""Building blocks that model families share; each has a plain form that serves as the reference for faster ones."""
