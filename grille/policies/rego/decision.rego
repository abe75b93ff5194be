# The demo bank's policy: what each agent may do, keyed on its SPIFFE identity.
#
# Who an agent is comes from its certificate (input.identity); what its role grants stands in data.json.
# Only built-in functions that OPA compiles to WebAssembly natively are used (concat, not sprintf).
package grille

# Every relation that the statement uses, with the way it is used.
uses contains {"relation": name, "access": use.access} if {
	some use in input.operation.relations
	name := concat(separator, [use.schema, use.name])
}

default separator := "."

# A queue is called QM1/PAYMENTS.IN.
separator := "/" if input.session.protocol == "mq"

role := data.roles[data.agents[input.identity.spiffe_id]]

# The relations of this role that may be read, for the reason given with a denial.
readable := concat(", ", sort([name |
	some name, grant in role.relations
	"read" in grant.access
]))

staff_only contains use.relation if {
	some use in uses
	use.relation in data.staff_only
	not role.relations[use.relation]
}

refused contains use if {
	some use in uses
	not permitted(use)
}

permitted(use) if use.access in role.relations[use.relation].access

refused_names := concat(", ", sort({concat(" ", [use.access, use.relation]) | some use in refused}))

default decision := {
	"allow": false,
	"control": "AC-01",
	"reason": "No policy is written for this agent. Ask the policy owner to register it.",
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

decision := object.union(denied, {
	"control": "AC-07",
	"reason": concat("", [
		concat(", ", sort(staff_only)),
		" is a staff-only export and closed to this agent. It may read: ", readable,
		". Query those relations with a WHERE clause for the one customer that the task is about.",
	]),
}) if {
	role
	count(staff_only) > 0
} else := object.union(denied, {
	"control": "AC-03",
	"reason": concat("", [
		"This agent has no right to ", refused_names, ". It may read: ", readable, ".",
	]),
}) if {
	role
	count(refused) > 0
} else := {
	"allow": true,
	"control": "AC-01",
	"reason": concat(" ", ["granted to role", data.agents[input.identity.spiffe_id]]),
	"passthrough": false,
	"filters": {use.relation: row_filter(use.relation) | some use in uses},
	"columns": {column: terms |
		some use in uses
		some column, terms in role.columns
		startswith(column, concat("", [use.relation, "."]))
	},
	"limits": role.limits,
	"locks": role.locks,
	"isolated": false,
	"not_before": null,
	"not_after": null,
	"cache": {"ttl_seconds": 60},
} if {
	role
}

denied := {
	"allow": false,
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

# All rows, or the rows of the agent's own branch.
row_filter(relation) if role.relations[relation].rows == "all"

row_filter(relation) := {
	"type": "field",
	"operator": "eq",
	"field": concat(".", [relation, "branch"]),
	"value": input.identity.attributes.branch,
} if role.relations[relation].rows == "own branch"
