# Rows of the regions that the agent is registered for.
package grille_library.geography

# What the identity is registered for: its scopes "region:NAME".
regions(identity) := {name |
	some scope in identity.scopes
	startswith(scope, "region:")
	name := trim_prefix(scope, "region:")
}

# The rows whose column holds a place of the identity's regions. Undefined, so that the relation is denied, if it has none.
# `places`: region -> places, {"benelux": ["BE", "NL", "LU"]}.
rows(identity, column, places) := {
	"type": "field",
	"operator": "in",
	"field": column,
	"value": found,
} if {
	found := sort({place |
		some region in regions(identity)
		some place in places[region]
	})
	count(found) > 0
}
