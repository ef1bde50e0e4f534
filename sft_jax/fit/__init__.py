"""Zero configuration: looks at data, chooses the settings of a run that a time budget allows, and trains."""
