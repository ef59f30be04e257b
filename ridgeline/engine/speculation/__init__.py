"""Speculation: a proposer guesses the next tokens, and one pass of the target verifies them all.

A guess costs less than a pass, and a pass over a few rows little more than one over a single row, so guesses
that are often right save time (Leviathan et al. 2023, arXiv 2211.17192). ``proposer.py`` says what a
proposer is; ``ngram.py``, ``draft_model.py`` and ``sinks_and_window.py`` are three. ``rules.py`` decides
which proposals are accepted, ``length.py`` how many to ask for; ``speculator.py`` ties them to the engine.
"""
