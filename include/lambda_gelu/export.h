#pragma once

/// Marks what the shared library exports; everything else is hidden.
#if defined(_WIN32)
#if defined(lambda_gelu_EXPORTS)
#define LAMBDA_GELU_API __declspec(dllexport)
#else
#define LAMBDA_GELU_API __declspec(dllimport)
#endif
#else
#define LAMBDA_GELU_API __attribute__((visibility("default")))
#endif
