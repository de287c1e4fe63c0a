"""What start.py is made of; the standard library alone."""
