"""Calibration: reading measured points, choosing a few, fitting constants, judging on the rest."""
