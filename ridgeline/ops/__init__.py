"""The operators of a forward pass and their readings.

``protocol`` says what a model may ask for; ``count`` answers with costs, ``reference`` and
``cpu`` with tensors, ``profile`` with tensors and times. Readings that execute import PyTorch
and are therefore imported by name where they are needed, never from here.
"""
