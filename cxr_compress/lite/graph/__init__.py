"""A .tflite as a graph: read as plain data, named after its layers, cut up, run, counted and hashed.

Knows no quantization and no converter, so that every other room of `lite` may build on it.
"""
