# Which columns of each relation a role may name at all, in whatever place of a statement.
package grille_library.column_sets

# The columns ("schema.relation.column") that the operation reads, writes or searches by and that no set holds.
# `sets`: relation -> columns.
outside(operation, sets) := {concat(".", [relation, column]) |
	some use in operation.relations
	relation := concat(".", [use.schema, use.name])
	some column in array.concat(use.columns, use.predicates)
	not held(sets, relation, column)
}

# A rule of its own: "not column in sets[relation]" would find nothing outside if the relation had no set.
held(sets, relation, column) if column in sets[relation]
