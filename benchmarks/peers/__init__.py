"""Ridgeline beside its peers: the same shapes on the same machine, in turn, in one run.

Run as ``python -m benchmarks.peers [--only ROW]``. Every contestant of a row is a process of its own that
keeps its model loaded and sleeps while another is timed. ``cases`` says what is timed, ``workers`` how each
peer does it, ``turns`` who is timed when, and ``results`` what becomes of the seconds.
"""
