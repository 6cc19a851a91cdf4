"""The embedded model `tiny`: pictures it learns from, its configs, its training and its evaluation."""
