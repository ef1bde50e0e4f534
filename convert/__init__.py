"""Conversion between torchvision's state_dicts and this project's weights files."""
