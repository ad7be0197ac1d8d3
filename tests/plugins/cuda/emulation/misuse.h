// Misuses a plugin in every way that it must refuse, and prints a line "NAME: LOG" for each.
#pragma once

namespace pom::test {

// Returns EXIT_FAILURE if anything was not refused.
int try_misuse();

}  // namespace pom::test
