"""The admin API, one file per noun. Handlers read and answer; what may be called by whom stands in auth/roles.py."""
