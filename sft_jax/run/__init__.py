"""The folder of a run, and what is said while it goes on."""
