# Working hours. A policy has no clock (its answers are reused); Grille has, and checks `not_before` and `not_after` before
# every execution. So the policy needs the day, as data that is published each day.
package grille_library.hours

# The two instants of a working day, to be joined to a decision with object.union. `day` has "date" ("2026-11-27") and
# "offset" ("+01:00"), `shift` has "from" and "until" ("08:00"). Undefined if one of them is missing.
window(day, shift) := {
	"not_before": concat("", [day.date, "T", shift.from, ":00", day.offset]),
	"not_after": concat("", [day.date, "T", shift.until, ":00", day.offset]),
}
