"""One absl command a file; they parse, call the library and print, nothing else."""
