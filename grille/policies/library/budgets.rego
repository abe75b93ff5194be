# Row and statement budgets from several places: of the role, of the relation, of the hour.
package grille_library.budgets

# For each limit the least of all that are given; null is no bound.
least(all) := {key: min(values) |
	some limits in all
	some key, _ in limits
	values := [value |
		some one in all
		value := one[key]
		value != null
	]
	count(values) > 0
}

# The budgets of the relations that an operation uses. `of_relation`: relation -> limits.
of(operation, of_relation) := [limits |
	some use in operation.relations
	limits := of_relation[concat(".", [use.schema, use.name])]
]
