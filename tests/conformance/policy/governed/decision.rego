# Everything that Grille understands is allowed, with a filter that hides no row.
package grille

decision := {
	"allow": input.operation.action != "connect",
	"control": "AC-01",
	"reason": "conformance suites",
	"passthrough": false,
	"filters": {name: true |
		some use in input.operation.relations
		name := concat(".", [use.schema, use.name])
	},
	"columns": {},
	"limits": {},
	"locks": true,
	"isolated": false,
	"not_before": null,
	"not_after": null,
	"cache": {"ttl_seconds": 3600},
}
