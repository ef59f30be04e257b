"""One module a peer, run in the peer's own interpreter: it loads its model and does a case when asked to."""
