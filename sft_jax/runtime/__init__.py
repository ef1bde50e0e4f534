"""The machine: devices, processes, signals, files and caches; nothing here knows of learning."""
