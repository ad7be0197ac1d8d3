# TensorRT for RTX's ONNX parser opens "libtensorrt_rtx.so" by that name once it meets a plugin, and the process ends
# if there is none; the wheels ship libtensorrt_rtx.so.1 only. libpom_rtx_soname.so carries that name as its SONAME and
# depends on the real library, so that loading it first answers the parser without touching the wheel.
#
# It is linked against an empty stand-in of the real library's name, which is built but never installed.
set(POM_RTX_EMPTY ${CMAKE_CURRENT_BINARY_DIR}/rtx_soname/empty.c)
file(CONFIGURE OUTPUT ${POM_RTX_EMPTY} CONTENT "typedef int pom_empty;\n")

add_library(pom_rtx_stand_in SHARED ${POM_RTX_EMPTY})
set_target_properties(pom_rtx_stand_in PROPERTIES
  OUTPUT_NAME tensorrt_rtx SOVERSION 1 LIBRARY_OUTPUT_DIRECTORY ${CMAKE_CURRENT_BINARY_DIR}/rtx_soname)

add_library(pom_rtx_soname SHARED ${POM_RTX_EMPTY})
target_link_libraries(pom_rtx_soname PRIVATE pom_rtx_stand_in)
target_link_options(pom_rtx_soname PRIVATE -Wl,--no-as-needed -Wl,-soname,libtensorrt_rtx.so)
# Without a run path: the stand-in must never be found at run time.
set_target_properties(pom_rtx_soname PROPERTIES NO_SONAME ON SKIP_BUILD_RPATH ON INSTALL_RPATH "")
install(TARGETS pom_rtx_soname LIBRARY DESTINATION ${POM_INSTALL_DIR})
