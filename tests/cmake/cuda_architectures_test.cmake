# cmake -P: how lists of CUDA architectures are read and described.
cmake_minimum_required(VERSION 3.25)
include("${CMAKE_CURRENT_LIST_DIR}/../../cmake/CudaArchitectures.cmake")

if(DEFINED REFUSED_TORCH_LIST) # called by expect_refusal() below
  _lg_architectures_of_torch("${REFUSED_TORCH_LIST}" ignored)
  return()
elseif(DEFINED REFUSED_LIST)
  _lg_describe_architectures("${REFUSED_LIST}" ignored ignored ignored)
  return()
endif()

function(expect what got expected)
  if(NOT got STREQUAL expected)
    message(SEND_ERROR "${what}: expected \"${expected}\", got \"${got}\"")
  endif()
endfunction()

function(expect_of_torch list expected)
  _lg_architectures_of_torch("${list}" got)
  expect("TORCH_CUDA_ARCH_LIST=${list}" "${got}" "${expected}")
endfunction()

function(expect_description list cmake archs text)
  _lg_describe_architectures("${list}" got_cmake got_archs got_text)
  expect("${list} for CMake" "${got_cmake}" "${cmake}")
  expect("${list} for build_info" "${got_archs}" "${archs}")
  expect("${list} in words" "${got_text}" "${text}")
endfunction()

function(expect_refusal variable list)
  execute_process(COMMAND "${CMAKE_COMMAND}" "-D${variable}=${list}" -P "${CMAKE_CURRENT_FUNCTION_LIST_FILE}"
    RESULT_VARIABLE result ERROR_VARIABLE error)
  if(result EQUAL 0 OR NOT error MATCHES "expected.*got")
    message(SEND_ERROR "${variable}=${list} must be refused in a sentence, got ${result}: ${error}")
  endif()
endfunction()

# The same as torch.utils.cpp_extension makes of them.
expect_of_torch("8.0" "80-real")
expect_of_torch("8.0 9.0+PTX;12.0a" "80-real;90-real;90-virtual;120a-real")
expect_of_torch("7.5;10.3+PTX" "75-real;103-real;103-virtual")
expect_of_torch("Ampere" "80-real;86-real;86-virtual")
expect_of_torch("Ampere+Tegra Hopper" "87-real;90-real;90-virtual")
expect_of_torch("Blackwell+Tegra" "110-real")
expect_of_torch("Blackwell" "100-real;103-real;120-real;121-real;121-virtual")
expect_refusal(REFUSED_TORCH_LIST "90")
expect_refusal(REFUSED_TORCH_LIST "8.0 sm_90")
expect_refusal(REFUSED_TORCH_LIST "Hooper")

expect_description("80-real;90-real;100;120" "80-real;90-real;100;120" "80;90;100+PTX;120+PTX"
  "80, 90, 100, 120 and PTX 100, 120")
expect_description("120;90-real;80-real" "80-real;90-real;120" "80;90;120+PTX" "80, 90, 120 and PTX 120")
expect_description("90-real;90-virtual;90-real" "90" "90+PTX" "90 and PTX 90")
expect_description("90a-real" "90a-real" "90a" "90a")
expect_description("80-real;100-virtual" "80-real;100-virtual" "80;100-virtual" "80 and PTX 100")
expect_description("90-virtual" "90-virtual" "90-virtual" "PTX 90")
expect_refusal(REFUSED_LIST "sm_90")
expect_refusal(REFUSED_LIST "90-PTX")
