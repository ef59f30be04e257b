"""Where model, reading, device and prediction meet: explain, check, and what they share."""
