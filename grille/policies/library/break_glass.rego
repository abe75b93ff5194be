# A grant for an emergency: named, approved by somebody else, and ending by itself.
package grille_library.break_glass

# The grant of this identity that covers all that the operation uses. Undefined if there is none, or if whoever asked for
# it has approved it. `grants`: SPIFFE ID -> {"ticket", "requested_by", "approved_by", "not_before", "not_after",
# "relations": relation -> accesses}.
grant(identity, operation, grants) := found if {
	found := grants[identity.spiffe_id]
	found.approved_by != found.requested_by
	count(operation.relations) > 0
	every use in operation.relations {
		use.access in found.relations[concat(".", [use.schema, use.name])]
	}
}

# The decision under a grant: all rows of what the operation uses, these columns and limits, until the grant ends. Its
# control is BG-01, so that every statement under a grant is found in the evidence.
decision(found, operation, columns, limits) := {
	"allow": true,
	"control": "BG-01",
	"reason": concat("", ["break-glass ", found.ticket, ", approved by ", found.approved_by]),
	"passthrough": false,
	"filters": {relation: true |
		some use in operation.relations
		relation := concat(".", [use.schema, use.name])
	},
	"columns": columns,
	"limits": limits,
	"locks": false,
	"isolated": false,
	"not_before": found.not_before,
	"not_after": found.not_after,
	"cache": {"ttl_seconds": 5},
}
