"""Talking with a model in the terminal: the session is the state, the terminal reads and prints."""
