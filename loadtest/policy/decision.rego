# The load driver's policy: every control on, one filtered relation.
package grille

decision := {
	"allow": true,
	"control": "AC-01",
	"reason": "load test",
	"passthrough": false,
	"filters": {name: row_filter(use.name) |
		some use in input.operation.relations
		name := concat(".", [use.schema, use.name])
	},
	"columns": {},
	"limits": {"rows": 1000000, "seconds": 60},
	"locks": false,
	"isolated": false,
	"not_before": null,
	"not_after": null,
	"cache": {"ttl_seconds": 3600},
}

row_filter(name) := {"type": "field", "operator": "eq", "field": "bid", "value": input.identity.attributes.bid} if {
	name != "pgbench_history"
} else := true
