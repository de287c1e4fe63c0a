"""Training: one flat loop. Run it with ``python -m vidcore.train CONFIG``."""
