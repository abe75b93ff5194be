# The load driver's policy.  A scope of the configuration turns a control off, so that one bundle serves every
# contender; data.policies is as long as the scenario p9 makes it.
package grille

scopes := {scope | some scope in input.identity.scopes}

decision := {
	"allow": granted,
	"control": "AC-01",
	"reason": "load test",
	"passthrough": passthrough,
	"filters": filters,
	"columns": columns,
	"limits": limits,
	"locks": false,
	"isolated": false,
	"not_before": null,
	"not_after": null,
	"cache": {"ttl_seconds": 3600},
}

default granted := false

granted if {
	some policy in data.policies
	startswith(input.identity.spiffe_id, policy.prefix)
	input.operation.action in policy.actions
}

granted if passthrough

default passthrough := false

passthrough if "passthrough" in scopes

limits := {} if passthrough else := {} if "no-limits" in scopes else := {"rows": 1000000, "seconds": 60}

filters := {} if passthrough else := {name: row_filter |
	some use in input.operation.relations
	name := concat(".", [use.schema, use.name])
}

# "all-rows": the control is off.  Else the agent's own branch, or all branches up to its last one.
row_filter := true if "all-rows" in scopes else := {
	"type": "field",
	"operator": "le",
	"field": "bid",
	"value": input.identity.attributes.last_bid,
} if input.identity.attributes.last_bid else := {
	"type": "field",
	"operator": "eq",
	"field": "bid",
	"value": input.identity.attributes.bid,
}

card_read := "clear" if "clear-card" in scopes else := "mask:last4" if "mask-card" in scopes else := "token"

columns := {"public.pgbench_accounts.card": {"read": card_read, "predicate": "equality", "write": "deny"}} if {
	not passthrough
	not "card-not-sensitive" in scopes
	some use in input.operation.relations
	use.name == "pgbench_accounts"
} else := {}
