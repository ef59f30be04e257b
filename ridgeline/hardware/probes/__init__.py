"""What ``ridgeline measure`` times. PyTorch is imported when a probe is made, not with this package."""
