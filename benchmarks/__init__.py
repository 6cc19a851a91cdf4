"""Measurements of this product, of its peers, and of the machine's ceiling. Each module is a command."""
