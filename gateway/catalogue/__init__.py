"""What is offered, as data: providers, credentials, models and aliases that operators change while gateways run."""
