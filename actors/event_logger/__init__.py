"""event_logger: the one place that events and restarts are written to, acknowledged once committed."""
