"""What operators see: logs, metrics, and what they must never see in either."""
