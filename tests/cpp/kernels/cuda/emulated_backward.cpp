#include <kernels/cuda/backward.cu>
