"""Other people's test suites, run directly and through Grille: ``python -m tests.conformance SUITE``."""
