"""How a network is trained: the step, the phases and the loop."""
