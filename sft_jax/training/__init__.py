"""Training: the step, the phases and the loop."""
