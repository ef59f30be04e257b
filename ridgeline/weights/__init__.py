"""Reading a model folder's files: weights, tokenizer, chat template, generation defaults.

Nothing here knows an architecture. Importing these modules is cheap: PyTorch, tokenizers, jinja2 and
huggingface_hub are imported by the functions that need them.
"""
