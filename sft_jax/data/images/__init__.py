"""Image files: which ones, how they are read, and how they become squares."""
