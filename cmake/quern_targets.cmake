# One way to declare a library, a test and a benchmark. Layers are the DEPS lines: a folder can include only what it links.

set(QUERN_WARNINGS -Wall -Wextra -Wshadow -Wnon-virtual-dtor)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")  # GCC 12 warns falsely in its own std::string (bug 105651)
  list(APPEND QUERN_WARNINGS -Wno-restrict -Werror)
endif()

add_library(quern_flags INTERFACE)
target_compile_options(quern_flags INTERFACE
  "$<$<COMPILE_LANGUAGE:CXX>:${QUERN_WARNINGS}>"
  "$<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr;-Xcompiler=-Wall,-Wextra,-Werror;SHELL:-Werror all-warnings>")
target_include_directories(quern_flags INTERFACE ${CMAKE_SOURCE_DIR})
if(QUERN_SANITIZE)
  target_compile_options(quern_flags INTERFACE -fsanitize=${QUERN_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all)
  target_link_options(quern_flags INTERFACE -fsanitize=${QUERN_SANITIZE})
  if(QUERN_SANITIZE MATCHES thread)
    # No warning of Boost.Asio's fences, which come beside mutexes that the sanitizer does see. And protobuf's map fields
    # have another layout under that macro, which Debian's library does not have; libstdc++ is told by its own macro.
    target_compile_options(quern_flags INTERFACE -Wno-tsan -U__SANITIZE_THREAD__ -D_GLIBCXX_TSAN=1)
  endif()
endif()

# quern_library(NAME SRCS a.cpp ... DEPS other ...)
function(quern_library name)
  cmake_parse_arguments(arg "" "" "SRCS;DEPS" ${ARGN})
  add_library(${name} STATIC ${arg_SRCS})
  target_link_libraries(${name} PUBLIC ${arg_DEPS} PRIVATE quern_flags)
  target_include_directories(${name} PUBLIC ${CMAKE_SOURCE_DIR})
endfunction()

# quern_test(NAME SRCS a_test.cpp ... DEPS lib ... [LABEL slow]): one GoogleTest binary, one CTest entry. Label: unit (the
# default, the whole suite under a minute), slow, or e2e.
function(quern_test name)
  cmake_parse_arguments(arg "" "LABEL;TIMEOUT" "SRCS;DEPS" ${ARGN})
  if(NOT arg_LABEL)
    set(arg_LABEL unit)
  endif()
  if(NOT arg_TIMEOUT)
    set(arg_TIMEOUT 120)
  endif()
  if(QUERN_SANITIZE)
    math(EXPR arg_TIMEOUT "5 * ${arg_TIMEOUT}")
  endif()
  add_executable(${name} ${arg_SRCS})
  target_link_libraries(${name} PRIVATE quern_flags ${arg_DEPS} GTest::gtest_main)
  add_test(NAME ${name} COMMAND ${name})
  # A program of which every test was skipped (no GPU, no Prometheus) is shown as skipped; one that failed as well is not.
  set_tests_properties(${name} PROPERTIES LABELS ${arg_LABEL} TIMEOUT ${arg_TIMEOUT}
    SKIP_REGULAR_EXPRESSION "  PASSED  . 0 tests[.]\n.  SKIPPED . [0-9]+ tests?, listed below:(\n.  SKIPPED . [^\n]*)*\n*$"
    ENVIRONMENT "QUERN_SOURCE_DIR=${CMAKE_SOURCE_DIR};QUERN_BINARY=${CMAKE_BINARY_DIR}/quern;TSAN_OPTIONS=suppressions=${CMAKE_SOURCE_DIR}/tests/tsan_suppressions.txt")
endfunction()

# quern_benchmark(NAME SRCS a.cpp DEPS lib): a program that prints a table. Not run by the tests; the target `benchmarks`
# builds them all.
function(quern_benchmark name)
  cmake_parse_arguments(arg "" "" "SRCS;DEPS" ${ARGN})
  add_executable(${name} EXCLUDE_FROM_ALL ${arg_SRCS})
  target_link_libraries(${name} PRIVATE quern_flags ${arg_DEPS})
  if(NOT TARGET benchmarks)
    add_custom_target(benchmarks)
  endif()
  add_dependencies(benchmarks ${name})
endfunction()
