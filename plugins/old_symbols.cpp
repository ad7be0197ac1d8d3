// libstdc++ 11 calls this internal function if a size overflows. Older versions lack it, but have the exception that it
// throws.
#include <new>

namespace std {

void __throw_bad_array_new_length() { throw bad_array_new_length(); }

}  // namespace std
