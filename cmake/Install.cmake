# One component serves `cmake --install` and the wheel, so that neither ships anything of a dependency.
include(CMakePackageConfigHelpers)
set(LG_CMAKE_DIR share/cmake/LambdaGelu)

install(TARGETS lambda_gelu EXPORT LambdaGeluTargets
  LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT lambda_gelu
  RUNTIME DESTINATION bin COMPONENT lambda_gelu
  ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT lambda_gelu)
install(DIRECTORY include/ DESTINATION include COMPONENT lambda_gelu)
install(EXPORT LambdaGeluTargets NAMESPACE LambdaGelu:: DESTINATION ${LG_CMAKE_DIR} COMPONENT lambda_gelu)

configure_package_config_file(cmake/LambdaGeluConfig.cmake.in ${CMAKE_CURRENT_BINARY_DIR}/LambdaGeluConfig.cmake
  INSTALL_DESTINATION ${LG_CMAKE_DIR})
write_basic_package_version_file(${CMAKE_CURRENT_BINARY_DIR}/LambdaGeluConfigVersion.cmake
  COMPATIBILITY SameMinorVersion)
install(FILES
  cmake/LambdaGeluTorch.cmake
  ${CMAKE_CURRENT_BINARY_DIR}/LambdaGeluConfig.cmake
  ${CMAKE_CURRENT_BINARY_DIR}/LambdaGeluConfigVersion.cmake
  DESTINATION ${LG_CMAKE_DIR} COMPONENT lambda_gelu)
