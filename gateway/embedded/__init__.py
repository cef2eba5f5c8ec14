"""What `farebox up` starts beside the gateway on one machine: Valkey, the local engine, secrets, the first key."""
