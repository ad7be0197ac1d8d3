# The GPUs that the kernels are compiled for, as options of nvcc.
#
# nvcc's front end runs once a generation, since it makes the same of the kernels for all chips of one; ptxas makes a
# chip's machine code of its result, PTX. So a chip's code is the same in every list. Where a GPU is not listed, but is
# no older than PTX that the library holds, the driver compiles that PTX when a kernel is first used.
set(POM_CUDA_ARCHITECTURES local CACHE STRING "local: this machine's GPU, or without one the targets of \
`pom-export build`, and PTX for all others from Turing on; release: seven architectures, and PTX for what comes after")
set_property(CACHE POM_CUDA_ARCHITECTURES PROPERTY STRINGS local release)

# A generation, and what is made of its PTX: machine code (sm_86) or the PTX itself (compute_75).
set(POM_RELEASE_CODE 75:sm_75 80:sm_80,sm_86,sm_89 90:sm_90 100:sm_100,sm_120,compute_100)
# sm86, sm89 and sm120, as in pom_export/engine/targets.py: the code for sm_86 runs on sm_89, whose own is the same.
set(POM_TARGETS_CODE 75:compute_75 80:sm_86 100:sm_120)

# Set `result` to what compiles for this machine's GPUs, with PTX for all others; empty where it has none.
function(pom_code_of_this_machine result)
  execute_process(COMMAND nvidia-smi --query-gpu=compute_cap --format=csv,noheader
    OUTPUT_VARIABLE said ERROR_QUIET)
  execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --list-gpu-code OUTPUT_VARIABLE known)
  string(REPLACE "\n" ";" capabilities "${said}")
  list(FILTER capabilities INCLUDE REGEX "^[0-9]+\\.[0-9]$")
  list(REMOVE_DUPLICATES capabilities)
  set(made_of_75 compute_75)
  set(found FALSE)
  foreach(capability IN LISTS capabilities)
    string(REPLACE "." "" chip ${capability})
    set(generation)  # none: older than Turing
    foreach(next 75 80 90 100)
      if(chip GREATER_EQUAL next)
        set(generation ${next})
      endif()
    endforeach()
    if(generation)
      set(found TRUE)
      if(known MATCHES "sm_${chip}\n")
        list(APPEND made_of_${generation} sm_${chip})
      else()  # to nvcc: the driver compiles for it
        list(APPEND made_of_${generation} compute_${generation})
      endif()
    endif()
  endforeach()
  set(code)
  foreach(generation 75 80 90 100)
    if(found AND made_of_${generation})
      list(REMOVE_DUPLICATES made_of_${generation})
      list(JOIN made_of_${generation} "," made)
      list(APPEND code ${generation}:${made})
    endif()
  endforeach()
  set(${result} ${code} PARENT_SCOPE)
endfunction()

# Set `result` to the options of nvcc for POM_CUDA_ARCHITECTURES.
function(pom_architecture_options result)
  if(POM_CUDA_ARCHITECTURES STREQUAL release)
    set(code ${POM_RELEASE_CODE})
  elseif(POM_CUDA_ARCHITECTURES STREQUAL local)
    pom_code_of_this_machine(code)
    if(NOT code)
      set(code ${POM_TARGETS_CODE})
    endif()
  else()
    message(FATAL_ERROR "POM_CUDA_ARCHITECTURES is '${POM_CUDA_ARCHITECTURES}': set it to local or release, "
      "or name architectures in CMAKE_CUDA_ARCHITECTURES")
  endif()
  message(STATUS "CUDA kernels: ${code}")
  list(TRANSFORM code REPLACE "(.+):(.+)" "--generate-code=arch=compute_\\1,code=[\\2]")
  set(${result} ${code} PARENT_SCOPE)
endfunction()
