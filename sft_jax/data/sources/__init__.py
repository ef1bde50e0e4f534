"""Sources of labelled images: one module per source, and the code that they share."""
