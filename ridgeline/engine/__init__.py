"""Generation: requests, cache blocks, the sampler, and the loop that runs them in one packed batch.

Requests and blocks import no PyTorch; ``generate`` and ``sampler`` do.
"""
