"""``python -m ridgeline.cli``, the same as ``ridgeline``."""

from ridgeline.cli import main

main()
