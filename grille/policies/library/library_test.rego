package grille_library_test

import data.grille_library.answer
import data.grille_library.break_glass
import data.grille_library.budgets
import data.grille_library.column_sets
import data.grille_library.geography
import data.grille_library.hours
import data.grille_library.purpose
import data.grille_library.tenant

operation := {"relations": [
	{"schema": "public", "name": "accounts", "access": "read", "columns": ["id", "balance"], "predicates": ["owner"]},
	{"schema": "public", "name": "customers", "access": "update", "columns": ["email"], "predicates": []},
]}

test_answers_are_complete if {
	object.keys(answer.deny("AC-03", "no")) == object.keys(answer.allow("yes", {}, {}))
	not answer.deny("AC-03", "no").allow
	answer.deny("AC-03", "no").reason == "no"
	answer.allow("yes", {"public.accounts": true}, {"rows": 5}).filters == {"public.accounts": true}
	answer.allow("yes", {"public.accounts": true}, {"rows": 5}).limits == {"rows": 5}
}

test_relation if answer.relation(operation.relations[0]) == "public.accounts"

test_tenant if {
	filter := tenant.rows({"attributes": {"tenant": 7}}, "tenant", "tenant_id")
	filter == {"type": "field", "operator": "eq", "field": "tenant_id", "value": 7}
}

test_no_tenant if {
	not tenant.rows({"attributes": {}}, "tenant", "tenant_id")
	not tenant.rows({"attributes": {"branch": "1"}}, "tenant", "tenant_id")
}

covers := {"public.accounts": ["fraud", "service"], "public.customers": ["service"]}

test_purpose if {
	purpose.purposes({"scopes": ["purpose:fraud", "region:uk", "purpose"]}) == {"fraud"}
	purpose.refused({"scopes": ["purpose:fraud"]}, operation, covers) == {"public.customers"}
	purpose.refused({"scopes": ["purpose:service"]}, operation, covers) == set()
}

test_purpose_of_nobody_and_of_nothing if {
	purpose.refused({"scopes": []}, operation, covers) == {"public.accounts", "public.customers"}
	purpose.refused({"scopes": ["purpose:fraud"]}, operation, {}) == {"public.accounts", "public.customers"}
}

test_hours if {
	window := hours.window({"date": "2026-11-27", "offset": "+01:00"}, {"from": "08:00", "until": "18:30"})
	window == {"not_before": "2026-11-27T08:00:00+01:00", "not_after": "2026-11-27T18:30:00+01:00"}
}

test_no_hours if {
	not hours.window({"date": "2026-11-27"}, {"from": "08:00", "until": "18:30"})
	not hours.window({"date": "2026-11-27", "offset": "Z"}, {"from": "08:00"})
}

grants := {"spiffe://bank.example/a": {
	"ticket": "INC-4711",
	"requested_by": "kim",
	"approved_by": "sam",
	"not_before": "2026-11-27T08:00:00Z",
	"not_after": "2026-11-27T12:00:00Z",
	"relations": {"public.accounts": ["read"], "public.customers": ["read", "update"]},
}}

agent := {"spiffe_id": "spiffe://bank.example/a"}

test_break_glass if {
	found := break_glass.grant(agent, operation, grants)
	decision := break_glass.decision(found, operation, {}, {"rows": 10})
	object.keys(decision) == object.keys(answer.deny("", ""))
	decision.allow
	decision.control == "BG-01"
	decision.reason == "break-glass INC-4711, approved by sam"
	decision.filters == {"public.accounts": true, "public.customers": true}
	decision.not_after == "2026-11-27T12:00:00Z"
}

test_no_grant if {
	not break_glass.grant({"spiffe_id": "spiffe://bank.example/b"}, operation, grants)
	not break_glass.grant(agent, {"relations": []}, grants)
	not break_glass.grant(agent, {"relations": [{"schema": "public", "name": "accounts", "access": "update"}]}, grants)
	not break_glass.grant(agent, {"relations": [{"schema": "public", "name": "payroll", "access": "read"}]}, grants)
}

test_nobody_approves_an_own_request if {
	own := {agent.spiffe_id: object.union(grants[agent.spiffe_id], {"approved_by": "kim"})}
	not break_glass.grant(agent, operation, own)
	unsigned := {agent.spiffe_id: object.remove(grants[agent.spiffe_id], ["approved_by"])}
	not break_glass.grant(agent, operation, unsigned)
}

test_column_sets if {
	column_sets.outside(operation, {"public.accounts": ["id", "balance", "owner"], "public.customers": ["email"]}) == set()
	column_sets.outside(operation, {"public.accounts": ["id", "balance"], "public.customers": ["email"]}) == {"public.accounts.owner"}
	column_sets.outside(operation, {"public.accounts": ["id", "balance", "owner"]}) == {"public.customers.email"}
}

test_budgets if {
	budgets.least([{"rows": 100, "seconds": 5}, {"rows": 10}, {"rows": null, "bytes": null}]) == {"rows": 10, "seconds": 5}
	budgets.least([]) == {}
	budgets.of(operation, {"public.accounts": {"rows": 10}, "public.payroll": {"rows": 1}}) == [{"rows": 10}]
}

places := {"benelux": ["NL", "BE"], "dach": ["DE"]}

test_geography if {
	filter := geography.rows({"scopes": ["region:benelux", "purpose:fraud"]}, "country", places)
	filter == {"type": "field", "operator": "in", "field": "country", "value": ["BE", "NL"]}
}

test_no_region if {
	not geography.rows({"scopes": []}, "country", places)
	not geography.rows({"scopes": ["region:mars"]}, "country", places)
}
