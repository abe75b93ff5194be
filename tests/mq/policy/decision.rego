# The policy of the MQ tests: what each agent may do with which queue stands in data.json, which the tests write.
package grille

use := input.operation.relations[0]

relation := concat("/", [use.schema, use.name])

decision := object.union(data.base, {"allow": true, "filters": {relation: row_filter}}) if granted

default row_filter := true

row_filter := data.rules[use.access][relation]

decision := object.union(data.base, {
	"allow": false,
	"reason": concat("", ["The queue ", relation, " is not yours to ", use.access, "."]),
}) if {
	not granted
	use
}

decision := data.base if not use

granted if {
	some pattern in data.agents[input.identity.spiffe_id][use.access]
	matches(pattern)
	not relation in data.denied
}

matches(pattern) if pattern == relation

matches(pattern) if {
	endswith(pattern, "*")
	startswith(relation, trim_suffix(pattern, "*"))
}
