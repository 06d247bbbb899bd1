"""Generators of the bundled sample data, one a task."""
