"""What becomes of a file on a target, looked up in its graph: Coral's Edge TPU, and XNNPACK on processors."""
