"""Who may use the front office, and what each role may do there."""
