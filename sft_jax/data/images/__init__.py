"""Image files: finding them, decoding them, and making them square."""
