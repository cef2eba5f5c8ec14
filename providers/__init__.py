"""Every wire format of the field, and everyone who speaks one. Knows no client, no key, no money."""
