"""Training: learning rate schedules and resumption of runs."""
