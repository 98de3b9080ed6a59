"""Both sides on one machine: engine, cohorts, workers, Ray tasks."""
