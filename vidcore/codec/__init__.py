"""Codecs: ``encode(clip) -> latent`` and ``decode(latent) -> clip``, both B C T H W."""
