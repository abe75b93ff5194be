"""The demonstration: a small bank's database, two agents, an attack, and the evidence of it."""
