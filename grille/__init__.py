"""Grille: a data-plane enforcement proxy between AI agents and a bank's data.

One path runs for every statement and every message: who is it, what is it, may it,
under what terms, what happened.  ``docs/explanation/how-a-statement-flows.md`` draws it.
"""

__version__ = "0.1.0"
