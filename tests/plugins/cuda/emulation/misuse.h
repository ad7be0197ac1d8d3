// What a plugin must refuse, in lines "NAME: LOG" on stdout, one for each way to misuse it.
#pragma once

namespace pom::test {

// EXIT_FAILURE where something was not refused.
int try_misuse();

}  // namespace pom::test
