"""A finished model for others: a bundle on the Hugging Face Hub (`hub`), a directory for optimum (`optimum`)."""
