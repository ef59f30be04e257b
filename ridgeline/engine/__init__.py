"""The engine: requests, the scheduler that batches them step by step, cache blocks, sampler and beam search.

Requests, sequences, scheduler and blocks import no PyTorch; the runner, the sampler and who uses them do.
"""
