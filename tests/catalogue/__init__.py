"""The catalogue of bypasses: every known way around the window, tried on a real Grille in front of a real PostgreSQL.

``python -m tests.catalogue`` (``make catalogue``) runs all of it on PostgreSQL 15 and 18; pytest runs it row by row.
"""
