"""Texts as numbers: tokens, segments and lengths."""
