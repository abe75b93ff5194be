# The catalogue's policy: what each agent may do stands in data.json, which the tests write.
package grille

role := data.roles[data.agents[input.identity.spiffe_id]]

used contains concat(".", [use.schema, use.name]) if some use in input.operation.relations

# An ordinary agent: the filters and columns of its role, for the relations that the statement uses.
decision := object.union(data.base, {
	"allow": input.operation.action != "connect",
	"filters": {relation: row_filter(role.filters[relation]) |
		some relation in used
		role.filters[relation]
	},
	"columns": {column: terms |
		some column, terms in role.columns
		some relation in used
		startswith(column, concat("", [relation, "."]))
	},
}) if {
	role
}

row_filter(wanted) := wanted if wanted != "own branch"

# Dearer than one comparison, so that a cheap condition of the agent would run first.
row_filter("own branch") := {"type": "compound", "operator": "or", "value": [
	{"type": "field", "operator": "eq", "field": "branch", "value": input.identity.attributes.branch},
	{"type": "field", "operator": "eq", "field": "branch", "value": "none"},
	{"type": "field", "operator": "eq", "field": "branch", "value": "no"},
]}

# An answer that is not one: given as it stands in the data.
decision := data.raw[input.identity.spiffe_id]

# Two answers at once.
decision := object.union(data.base, {"allow": verdict}) if {
	some verdict in [true, false]
	input.identity.spiffe_id == data.conflicting
}

# Somebody else.
decision := object.union(data.base, {"allow": false}) if {
	not role
	not data.raw[input.identity.spiffe_id]
	not input.identity.spiffe_id in {data.conflicting, data.undefined}
}
