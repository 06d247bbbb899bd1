"""What finished runs say about the next dollars: curves, recommendation, what to measure next."""
