"""People and language models as a source of labels, with their price."""
