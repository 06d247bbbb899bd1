"""The authors' files as TensorFlow Datasets, one builder a module."""
