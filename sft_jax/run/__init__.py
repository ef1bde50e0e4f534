"""The folder of a run, its checkpoints, console output and loggers."""
