"""What may not go in or come out: rules per key, project, organisation or for all, on prompts and on answers."""
