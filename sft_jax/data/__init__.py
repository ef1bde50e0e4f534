"""Labelled images: where they come from, in which order they are seen, and what is done to them on the device."""
