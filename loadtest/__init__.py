"""Measures Grille beside what its users run today, alternating in one run; see docs/how-to/measure.md."""
