# Complete decisions, so that a policy writes only what it decides.
package grille_library.answer

# "schema.name" of one use of a relation.
relation(use) := concat(".", [use.schema, use.name])

# The statement is denied under this control, and the agent is told the reason.
deny(control, reason) := {
	"allow": false,
	"control": control,
	"reason": reason,
	"passthrough": false,
	"filters": {},
	"columns": {},
	"limits": {},
	"locks": false,
	"isolated": false,
	"not_before": null,
	"not_after": null,
	"cache": {"ttl_seconds": 5},
}

# The statement is allowed for the rows of the filters, by "schema.relation", within the limits. Sensitive columns are
# masked until the policy says more of them: object.union(answer.allow(...), {"columns": ...}).
allow(reason, filters, limits) := {
	"allow": true,
	"control": "AC-01",
	"reason": reason,
	"passthrough": false,
	"filters": filters,
	"columns": {},
	"limits": limits,
	"locks": false,
	"isolated": false,
	"not_before": null,
	"not_after": null,
	"cache": {"ttl_seconds": 60},
}
