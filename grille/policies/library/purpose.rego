# Data is used for the purposes that it was collected for.
package grille_library.purpose

# What the identity is registered for: its scopes "purpose:NAME".
purposes(identity) := {name |
	some scope in identity.scopes
	startswith(scope, "purpose:")
	name := trim_prefix(scope, "purpose:")
}

# The relations of the operation that none of these purposes covers. `covers`: relation -> the purposes it may serve.
refused(identity, operation, covers) := {relation |
	some use in operation.relations
	relation := concat(".", [use.schema, use.name])
	count(purposes(identity) & {name | some name in covers[relation]}) == 0
}
