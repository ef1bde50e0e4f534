"""The machine: devices, processes, signals, files and caches, independent of training."""
