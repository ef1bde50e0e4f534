"""Hyper-parameter search, which trains several trials at once if that is faster."""
