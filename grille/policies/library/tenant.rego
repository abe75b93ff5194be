# Rows of the agent's own tenant, branch or desk.
package grille_library.tenant

# The rows whose column holds this attribute of the identity. Undefined if the identity has no such attribute: a relation
# whose filter is undefined is absent from the answer, and denied.
rows(identity, attribute, column) := {
	"type": "field",
	"operator": "eq",
	"field": column,
	"value": identity.attributes[attribute],
}
