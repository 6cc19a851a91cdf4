"""A torch module as ONNX graph, and the forms of that graph for one backend: the same function in operators of its own.

A form lies beside the plain graph of its stage and reads the same file of weights. A backend says which form it takes.
"""
