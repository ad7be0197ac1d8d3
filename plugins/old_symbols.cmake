# Links against old names of what old systems have too, so that a wheel built here runs there.
#
# Since glibc 2.34, threads and dlopen are part of libc.so.6, under new versions (pthread_create@GLIBC_2.34), while the old
# ones (pthread_create@GLIBC_2.2.5 in libpthread.so.0) stay for programs that were linked before. The CUDA runtime needs
# them. Stand-ins for the old libraries, which are never installed, make the linker choose the old versions.
# tools/build_wheel.py sets POM_OLD_SYMBOLS, and auditwheel checks what came of it.
option(POM_OLD_SYMBOLS "Link for glibc 2.27 and libstdc++ of GCC 7 (x86_64, built with GCC on glibc)" OFF)

set(POM_PTHREAD
  pthread_condattr_setpshared pthread_create pthread_detach pthread_getspecific pthread_join pthread_key_create
  pthread_key_delete pthread_kill pthread_mutex_trylock pthread_mutexattr_destroy pthread_mutexattr_init
  pthread_mutexattr_setpshared pthread_mutexattr_settype pthread_once pthread_rwlock_destroy pthread_rwlock_init
  pthread_rwlock_rdlock pthread_rwlock_timedrdlock pthread_rwlock_timedwrlock pthread_rwlock_tryrdlock
  pthread_rwlock_trywrlock pthread_rwlock_unlock pthread_rwlock_wrlock pthread_rwlockattr_destroy
  pthread_rwlockattr_init pthread_rwlockattr_setpshared pthread_setspecific pthread_spin_destroy pthread_spin_init
  pthread_spin_lock pthread_spin_trylock pthread_spin_unlock sem_destroy sem_init sem_post sem_timedwait sem_trywait
  sem_wait)
set(POM_DL dlclose dlerror dlopen dlsym dlvsym)
set(POM_RT shm_open shm_unlink)

# Make a stand-in for lib`name`.so.`version` with functions of GLIBC_2.2.5, and of another version after it.
function(pom_old_library name soversion functions)
  set(folder ${CMAKE_CURRENT_BINARY_DIR}/old_symbols)
  list(JOIN functions ";" old)
  set(map "GLIBC_2.2.5 { ${old}; };\n")
  foreach(function IN LISTS functions)
    string(APPEND source "void ${function}(void) {}\n")
  endforeach()
  if(ARGN)
    list(POP_FRONT ARGN version)
    list(JOIN ARGN ";" newer)
    string(APPEND map "${version} { ${newer}; } GLIBC_2.2.5;\n")
    foreach(function IN LISTS ARGN)
      string(APPEND source "void ${function}(void) {}\n")
    endforeach()
  endif()
  file(CONFIGURE OUTPUT ${folder}/${name}.c CONTENT "${source}" @ONLY)
  file(CONFIGURE OUTPUT ${folder}/${name}.map CONTENT "${map}" @ONLY)
  add_library(pom_old_${name} SHARED ${folder}/${name}.c)
  set_target_properties(pom_old_${name} PROPERTIES
    OUTPUT_NAME ${name} SOVERSION ${soversion} LIBRARY_OUTPUT_DIRECTORY ${folder} C_VISIBILITY_PRESET default)
  target_compile_options(pom_old_${name} PRIVATE -fno-builtin -w)
  target_link_options(pom_old_${name} PRIVATE -nostdlib -Wl,--version-script=${folder}/${name}.map)
endfunction()

# Let a library of ours be linked with old symbols; does nothing without POM_OLD_SYMBOLS.
function(pom_link_old_symbols library)
  if(NOT POM_OLD_SYMBOLS)
    return()
  endif()
  target_sources(${library} PRIVATE ${PROJECT_SOURCE_DIR}/old_symbols.cpp)
  # As options they come first on the linker's line, before the C library that has the new versions, and are taken though
  # nothing before them needs them.
  add_dependencies(${library} pom_old_pthread pom_old_dl pom_old_rt)
  target_link_options(${library} PRIVATE -Wl,--push-state,--no-as-needed
    $<TARGET_FILE:pom_old_pthread> $<TARGET_FILE:pom_old_dl> $<TARGET_FILE:pom_old_rt> -Wl,--pop-state)
endfunction()

if(POM_OLD_SYMBOLS)
  pom_old_library(pthread 0 "${POM_PTHREAD}")
  pom_old_library(dl 2 "${POM_DL}" GLIBC_2.3.4 dlmopen)
  pom_old_library(rt 1 "${POM_RT}")
endif()
