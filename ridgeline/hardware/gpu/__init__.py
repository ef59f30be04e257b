"""``ridgeline measure --device cuda``: what is timed on a GPU, and how. PyTorch is imported when it is
timed."""
