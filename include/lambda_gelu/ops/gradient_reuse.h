#pragma once

#include <lambda_gelu/export.h>

#include <cstdint>

namespace lambda_gelu {

/// Whether backward may write the gradient of the input into the memory of the incoming gradient. Done only where that
/// gradient is the last reference to its memory and first order is all that is asked for, so that nobody can see it
/// change; it saves a buffer of the activation's size. On by default, for all threads; off for measurements and
/// debugging. Python: lambda_gelu.set_gradient_reuse.
///
/// On CUDA a reference says nothing of what other streams still read: a hook that reads a gradient on a stream of its
/// own and keeps no reference must let the stream of backward wait for that. torch asks the same, since its engine adds
/// gradients up in place where it holds the last reference.
LAMBDA_GELU_API void set_gradient_reuse(bool enabled);
LAMBDA_GELU_API bool gradient_reuse_enabled();

/// How often a gradient has been reused in this process.
LAMBDA_GELU_API int64_t gradient_reuse_count();

}  // namespace lambda_gelu
