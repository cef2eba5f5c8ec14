"""SCIM 2.0: people and groups provisioned from outside. wire.py: filters, patches, errors; store.py: SQL; routes.py."""
