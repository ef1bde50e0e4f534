"""Hyper-parameter search: trials on the training images, several at once where that is faster."""
