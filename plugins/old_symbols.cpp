// libstdc++ 11 calls this function of its own where a size overflows; older ones do not have it, but have what it
// throws.
#include <new>

namespace std {

void __throw_bad_array_new_length() { throw bad_array_new_length(); }

}  // namespace std
