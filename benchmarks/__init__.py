"""Measurements of this product, of its peers, and of what the machine could do at most. Each module is a command."""
