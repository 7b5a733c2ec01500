#include <kernels/cuda/forward.cu>
