"""The small model that ships with the package, and the tour that shows what Ridgeline does."""
