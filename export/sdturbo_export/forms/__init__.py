"""Forms of a graph for one execution provider: the same function in operators that no other provider has.

A form lies beside the plain graph of its stage and reads the same file of weights. A backend says which form it takes.
"""
