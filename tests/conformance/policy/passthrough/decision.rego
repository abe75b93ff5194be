# Every session may go through untouched; what is not a session's start is denied.
package grille

decision := {
	"allow": input.operation.action == "connect",
	"control": "AC-08",
	"reason": "conformance suites",
	"passthrough": input.operation.action == "connect",
	"filters": {},
	"columns": {},
	"limits": {},
	"locks": false,
	"isolated": false,
	"not_before": null,
	"not_after": null,
	"cache": {"ttl_seconds": 3600},
}
