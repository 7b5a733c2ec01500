// The hardware's approximations over all of their inputs: how far off they are, and a digest of every result, by which
// models of GPU can be compared. Prints JSON.
//
//   nvcc -std=c++20 -O3 -arch=native tests/gpu/approximations.cu -o approximations && ./approximations
//
// A host compiler builds it too (g++ -std=c++20 -O2 -x c++), with correctly rounded stand-ins: then every error it
// prints must be at most half a unit. `approximations 4096` takes every 4096th input.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#define HD __host__ __device__
#else
#define HD
#endif

namespace {

struct Worst {
  unsigned long long error_and_input;  // the error's bits as a float above the input: the largest error wins
  unsigned long long misrounded;
  unsigned long long digest;     // a sum of hashes: the order of the inputs does not matter
  unsigned long long surprises;  // NaN, infinity, zero and what is flushed: not what PTX promises
};

template <class To, class From>
HD To bits_of(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

HD unsigned long long hash(unsigned long long v) {
  v = (v ^ (v >> 30)) * 0xbf58476d1ce4e5b9ull;
  v = (v ^ (v >> 27)) * 0x94d049bb133111ebull;
  return v ^ (v >> 31);
}

HD float flush(float v) {
  return fabsf(v) < 1.17549435e-38f ? copysignf(0.0f, v) : v;
}

// The distance from `exact`, which lies in float's normal range, in units of float's last place there.
HD float error_in_ulp(float actual, double exact) {
  int exponent;
  frexp(exact, &exponent);
  return static_cast<float>(fabs(static_cast<double>(actual) - exact) * ldexp(1.0, 24 - exponent));
}

struct Result {
  float error = 0;
  bool misrounded = false, surprise = false;
  std::uint32_t bits = 0;
};

// `special`: what PTX promises where the exact value is not a normal float.
HD Result compare(float actual, double exact, bool normal, float special) {
  Result r;
  r.bits = actual != actual ? 0x7fffffffu : bits_of<std::uint32_t>(actual);
  if (normal) {
    r.error = error_in_ulp(actual, exact);
    r.misrounded = actual != static_cast<float>(exact);
    r.surprise = !(r.error < 1e6f);
  } else {
    r.surprise =
        special != special ? actual == actual : bits_of<std::uint32_t>(actual) != bits_of<std::uint32_t>(special);
  }
  return r;
}

struct Exp2 {
  static constexpr const char* name = "ex2.approx.ftz.f32";
  HD static Result of(std::uint32_t input) {
    const float x = bits_of<float>(input);
#if defined(__CUDA_ARCH__)
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
#else
    const float y = flush(static_cast<float>(exp2(static_cast<double>(flush(x)))));
#endif
    const double exact = exp2(static_cast<double>(flush(x)));
    const bool normal = exact >= 0x1p-126 && exact < 0x1.ffffffp127;
    const float special = x != x ? x : exact < 1 ? 0.0f : INFINITY;
    return compare(y, exact, normal, special);
  }
};

struct Reciprocal {
  static constexpr const char* name = "rcp.approx.ftz.f32";
  HD static Result of(std::uint32_t input) {
    const float x = bits_of<float>(input);
#if defined(__CUDA_ARCH__)
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
#else
    const float y = flush(static_cast<float>(1.0 / static_cast<double>(flush(x))));
#endif
    const double exact = 1.0 / static_cast<double>(flush(x));
    const bool normal = fabs(exact) >= 0x1p-126 && fabs(exact) < 0x1.ffffffp127;
    const float special = x != x ? x : fabs(exact) < 1 ? copysignf(0.0f, x) : copysignf(INFINITY, x);
    return compare(y, exact, normal, special);
  }
};

// rcp.approx.ftz.f64 reads the upper half of its argument only. Its error is given in units of 2^-20 of the result.
struct ReciprocalDouble {
  static constexpr const char* name = "rcp.approx.ftz.f64";
  HD static Result of(std::uint32_t input) {
    const double x = bits_of<double>(static_cast<unsigned long long>(input) << 32);
    const double magnitude = fabs(x);
    Result r;
    if (!(magnitude >= 0x1p-1021 && magnitude <= 0x1p1021)) return r;  // the kernels use [1, 2^100]
#if defined(__CUDA_ARCH__)
    double y;
    asm("rcp.approx.ftz.f64 %0, %1;" : "=d"(y) : "d"(x));
#else
    const double y = 1.0 / x;
#endif
    r.error = static_cast<float>(fabs(fma(x, y, -1.0)) * 0x1p20);
    r.surprise = !(r.error < 16);
    r.bits = static_cast<std::uint32_t>(bits_of<unsigned long long>(y) >> 32);
    return r;
  }
};

HD void add(Worst& worst, std::uint32_t input, const Result& r) {
  const auto key = static_cast<unsigned long long>(bits_of<std::uint32_t>(r.error)) << 32 | input;
  if (key > worst.error_and_input) worst.error_and_input = key;
  worst.misrounded += r.misrounded;
  worst.surprises += r.surprise;
  worst.digest += hash(static_cast<unsigned long long>(input) << 32 | r.bits);
}

#if defined(__CUDACC__)
void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "approximations: %s\n", cudaGetErrorString(error));
  std::exit(1);
}

template <class Function>
__global__ void scan(Worst* total, unsigned long long stride) {
  Worst mine{};
  const unsigned long long threads = static_cast<unsigned long long>(gridDim.x) * blockDim.x;
  for (auto i = blockIdx.x * static_cast<unsigned long long>(blockDim.x) + threadIdx.x; i * stride < 1ull << 32;
       i += threads) {
    const auto input = static_cast<std::uint32_t>(i * stride);
    add(mine, input, Function::of(input));
  }
  atomicMax(&total->error_and_input, mine.error_and_input);
  atomicAdd(&total->misrounded, mine.misrounded);
  atomicAdd(&total->surprises, mine.surprises);
  atomicAdd(&total->digest, mine.digest);
}
#endif

template <class Function>
void report(unsigned long long stride, bool last) {
  Worst worst{};
#if defined(__CUDACC__)
  Worst* device = nullptr;
  check(cudaMalloc(&device, sizeof worst));
  check(cudaMemset(device, 0, sizeof worst));
  scan<Function><<<4096, 256>>>(device, stride);
  check(cudaGetLastError());
  check(cudaMemcpy(&worst, device, sizeof worst, cudaMemcpyDeviceToHost));
  check(cudaFree(device));
#else
  for (unsigned long long i = 0; i < 1ull << 32; i += stride) {
    add(worst, static_cast<std::uint32_t>(i), Function::of(static_cast<std::uint32_t>(i)));
  }
#endif
  std::printf(
      "  {\"instruction\": \"%s\", \"max_error\": %.6g, \"at\": \"0x%08llx\", \"misrounded\": %llu, "
      "\"surprises\": %llu, \"digest\": \"%016llx\"}%s\n",
      Function::name, static_cast<double>(bits_of<float>(static_cast<std::uint32_t>(worst.error_and_input >> 32))),
      worst.error_and_input & 0xffffffffull, worst.misrounded, worst.surprises, worst.digest, last ? "" : ",");
}

}  // namespace

int main(int argc, char** argv) {
  const unsigned long long stride = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 1;
  if (stride == 0) {
    std::fprintf(stderr, "approximations: the stride must be at least 1, got %s\n", argv[1]);
    return 2;
  }
  std::printf("[\n");
  report<Exp2>(stride, false);
  report<Reciprocal>(stride, false);
  report<ReciprocalDouble>(stride, true);
  std::printf("]\n");
}
