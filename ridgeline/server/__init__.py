"""``ridgeline serve``: a model behind OpenAI's HTTP API, with metrics, status and a page.

Needs the extra ``serve``.
"""
