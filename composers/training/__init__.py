"""Training: learning rate schedules, and resumed runs."""
