"""HTML reports of a run, or of several runs side by side."""
