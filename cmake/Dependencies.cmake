# Every third-party dependency: an installed package first, a pinned download otherwise.
#
# Without a network: LAMBDA_GELU_DEPENDENCIES=<folder> (option, or variable of the environment) with the sources in
# googletest/, fmt/, highway/ and benchmark/ replaces the downloads. CONTRIBUTING.md says how to fill it.
# FETCHCONTENT_SOURCE_DIR_<GOOGLETEST|FMT|HIGHWAY|BENCHMARK>=<unpacked source> does so for one.
# LAMBDA_GELU_FORCE_FETCH=ON ignores installed packages (used for reproducible release wheels).
include(FetchContent)
option(LAMBDA_GELU_FORCE_FETCH "ignore installed GTest, fmt, Highway and Google Benchmark" OFF)
set(LAMBDA_GELU_DEPENDENCIES "$ENV{LAMBDA_GELU_DEPENDENCIES}" CACHE PATH
  "folder with the sources of googletest, fmt, highway and benchmark, used instead of downloads")

# GIT_TAG is a commit: the content is pinned without an archive hash.
FetchContent_Declare(googletest
  GIT_REPOSITORY https://github.com/google/googletest.git
  GIT_TAG 52eb8108c5bdec04579160ae17225d66034bd723) # 1.17.0
FetchContent_Declare(fmt
  GIT_REPOSITORY https://github.com/fmtlib/fmt.git
  GIT_TAG 407c905e45ad75fc29bf0f9bb7c5c2fd3475976f) # 12.1.0, the version torch 2.11 to 2.13 bundle
FetchContent_Declare(highway
  GIT_REPOSITORY https://github.com/google/highway.git
  GIT_TAG 2607d3b5b0113992fe84d3848859eae13b3b52c1) # 1.4.0
FetchContent_Declare(benchmark
  GIT_REPOSITORY https://github.com/google/benchmark.git
  GIT_TAG 12235e24652fc7f809373e7c11a5f73c5763fc4c) # 1.9.0

# The source of a dependency in LAMBDA_GELU_DEPENDENCIES: <name>, or <name>-src as FetchContent calls its downloads.
function(_lg_given_source name out)
  set(${out} "" PARENT_SCOPE)
  if(LAMBDA_GELU_DEPENDENCIES)
    foreach(folder "${LAMBDA_GELU_DEPENDENCIES}/${name}" "${LAMBDA_GELU_DEPENDENCIES}/${name}-src")
      if(EXISTS "${folder}/CMakeLists.txt")
        set(${out} "${folder}" PARENT_SCOPE)
        return()
      endif()
    endforeach()
    message(FATAL_ERROR
      "${name} is needed and not installed, and LAMBDA_GELU_DEPENDENCIES has no ${LAMBDA_GELU_DEPENDENCIES}/${name}")
  endif()
endfunction()

# Static, PIC, hidden and without install rules: a dependency never travels in our package.
macro(lambda_gelu_fetch name)
  set(BUILD_SHARED_LIBS OFF)
  set(BUILD_TESTING OFF)
  set(CMAKE_POLICY_DEFAULT_CMP0077 NEW)
  set(CMAKE_POLICY_VERSION_MINIMUM 3.5)
  set(INSTALL_GTEST OFF)
  set(BUILD_GMOCK OFF)
  set(FMT_INSTALL OFF)
  set(BENCHMARK_ENABLE_TESTING OFF)
  set(BENCHMARK_ENABLE_INSTALL OFF)
  # FetchContent_MakeAvailable would install the dependency with us: EXCLUDE_FROM_ALL in
  # FetchContent_Declare needs CMake 3.28.
  FetchContent_GetProperties(${name})
  if(NOT ${name}_POPULATED)
    string(TOUPPER "FETCHCONTENT_SOURCE_DIR_${name}" _lg_source_variable)
    if(NOT ${_lg_source_variable})
      _lg_given_source(${name} ${_lg_source_variable})
    endif()
    if(NOT ${_lg_source_variable} AND NOT FETCHCONTENT_FULLY_DISCONNECTED)
      message(STATUS "LambdaGelu: downloading ${name} (without a network: LAMBDA_GELU_DEPENDENCIES=<folder>)")
    endif()
    FetchContent_Populate(${name})
    if(NOT "${ARGN}" STREQUAL HEADERS_ONLY)
      add_subdirectory(${${name}_SOURCE_DIR} ${${name}_BINARY_DIR} EXCLUDE_FROM_ALL SYSTEM)
    endif()
  endif()
endmacro()

function(lambda_gelu_need_gtest)
  if(NOT LAMBDA_GELU_FORCE_FETCH)
    find_package(GTest QUIET)
  endif()
  if(NOT TARGET GTest::gtest_main)
    lambda_gelu_fetch(googletest)
    if(NOT TARGET GTest::gtest_main)
      add_library(GTest::gtest ALIAS gtest)
      add_library(GTest::gtest_main ALIAS gtest_main)
    endif()
  endif()
endfunction()

# fmt is used header-only and only in files that do not include torch: torch ships headers of another fmt.
function(lambda_gelu_need_fmt)
  if(TARGET fmt::fmt-header-only)
    return()
  endif()
  if(NOT LAMBDA_GELU_FORCE_FETCH)
    find_package(fmt QUIET GLOBAL)
  endif()
  if(NOT TARGET fmt::fmt-header-only)
    lambda_gelu_fetch(fmt)
  endif()
endfunction()

# Highway is used header-only with our own run-time dispatch: nothing of it is linked, because Debian's
# package has only a shared library and a wheel must not need it.
function(lambda_gelu_need_highway)
  if(TARGET LambdaGelu::highway)
    return()
  endif()
  if(NOT LAMBDA_GELU_FORCE_FETCH)
    find_path(LG_HIGHWAY_INCLUDE hwy/highway.h)
  endif()
  # Before 1.0 the targets had other numbers, and kernels.cpp chooses them by number.
  if(LG_HIGHWAY_INCLUDE)
    set(major "")
    foreach(header highway.h base.h)
      if(EXISTS "${LG_HIGHWAY_INCLUDE}/hwy/${header}" AND NOT major)
        file(STRINGS "${LG_HIGHWAY_INCLUDE}/hwy/${header}" major REGEX "define HWY_MAJOR [1-9]")
      endif()
    endforeach()
    if(NOT major)
      set(LG_HIGHWAY_INCLUDE "LG_HIGHWAY_INCLUDE-NOTFOUND")
    endif()
  endif()
  if(NOT LG_HIGHWAY_INCLUDE)
    lambda_gelu_fetch(highway HEADERS_ONLY)
    set(LG_HIGHWAY_INCLUDE "${highway_SOURCE_DIR}")
  endif()
  add_library(LambdaGelu::highway INTERFACE IMPORTED GLOBAL)
  set_target_properties(LambdaGelu::highway PROPERTIES INTERFACE_INCLUDE_DIRECTORIES "${LG_HIGHWAY_INCLUDE}")
endfunction()

function(lambda_gelu_need_benchmark)
  if(NOT LAMBDA_GELU_FORCE_FETCH)
    find_package(benchmark QUIET)
  endif()
  if(NOT TARGET benchmark::benchmark)
    lambda_gelu_fetch(benchmark)
  endif()
endfunction()
