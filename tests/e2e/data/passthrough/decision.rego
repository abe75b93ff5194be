# Sessions of the agents that data.json names are passthrough; nothing else is allowed.
package grille

default decision := {
	"allow": false,
	"control": "AC-01",
	"reason": "This agent has passthrough sessions or none.",
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

decision := {
	"allow": true,
	"control": "AC-01",
	"reason": "granted to a trusted tool",
	"passthrough": true,
	"filters": {},
	"columns": {},
	"limits": {},
	"locks": false,
	"isolated": false,
	"not_before": null,
	"not_after": null,
	"cache": {"ttl_seconds": 60},
} if {
	input.operation.action == "connect"
	input.identity.spiffe_id in data.passthrough
}
