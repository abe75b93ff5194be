# The same cases run through the compiled bundle in tests/policies/test_demo_policy.py.
package grille_test

import data.grille

service := "spiffe://bank.example/ns/service/sa/assistant"

fraud := "spiffe://bank.example/ns/fraud/sa/scorer"

request(spiffe_id, action, uses) := {
	"identity": {"spiffe_id": spiffe_id, "attributes": {"branch": "0042"}},
	"session": {"protocol": "postgres", "database": "bank"},
	"operation": {"action": action, "functions": [], "relations": [use |
		some [name, access] in uses
		use := {"schema": "public", "name": name, "access": access, "columns": [], "predicates": []}
	]},
}

decide(spiffe_id, action, uses) := decision if {
	decision := grille.decision with input as request(spiffe_id, action, uses)
}

test_own_branch if {
	decision := decide(service, "select", [["customers", "read"]])
	decision.allow
	decision.filters["public.customers"].value == "0042"
	decision.columns["public.customers.ssn"].read == "mask:last4"
}

test_all_rows_as_tokens if {
	decision := decide(fraud, "select", [["customers", "read"], ["accounts", "read"]])
	decision.allow
	decision.filters["public.customers"] == true
	decision.columns["public.customers.ssn"].read == "token"
}

test_no_relation if decide(service, "select", []).allow

test_export_is_for_staff if {
	decision := decide(service, "select", [["customer_export", "read"]])
	not decision.allow
	decision.control == "AC-07"
	contains(decision.reason, "public.customers")
}

test_missing_and_unlisted_share_one_answer if {
	some name in ["no_such_table", "pg_authid"]
	decision := decide(service, "select", [[name, "read"]])
	not decision.allow
	decision.control == "AC-03"
}

test_no_write_for_analyst if {
	decision := decide(fraud, "update", [["customers", "update"], ["customers", "read"]])
	not decision.allow
	decision.control == "AC-03"
}

test_stranger if {
	decision := decide("spiffe://bank.example/ns/other/sa/thing", "select", [["customers", "read"]])
	not decision.allow
	decision.control == "AC-01"
}

test_branch_unknown if {
	decision := grille.decision with input as {
		"identity": {"spiffe_id": service, "attributes": {}},
		"operation": {"relations": [{"schema": "public", "name": "customers", "access": "read"}]},
	}
	not decision.filters["public.customers"]
}
