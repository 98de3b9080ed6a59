"""The machine below: durable files, homes, logs, heartbeats, limits of memory, processes."""
