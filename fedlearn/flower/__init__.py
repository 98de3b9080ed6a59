"""The only imports of flwr: the two apps, the strategies, and a grid that runs in one process."""
