#include <kernels/cpu/gates.h>

#include <new>

namespace lambda_gelu::kernels {
namespace {

template <class T>
void fill(Formula formula, const double* hardness, std::int64_t channels, std::byte* to) {
  const GateRecipe recipe = gate_recipe<T>(formula);
  for (std::int64_t c = 0; c < channels; ++c) {
    ::new (to + c * static_cast<std::int64_t>(sizeof(Gate<T>))) Gate<T>(make_gate<T>(recipe, hardness[c]));
  }
}

}  // namespace

Gates::Gates(DType dtype, Formula formula, const double* hardness, std::int64_t channels)
    : is_double_(dtype == DType::kFloat64), gate_size_(is_double_ ? sizeof(Gate<double>) : sizeof(Gate<float>)) {
  if (channels > 1) many_.reset(new std::byte[static_cast<std::size_t>(channels * gate_size_)]);
  std::byte* to = many_ ? many_.get() : one_;
  if (is_double_) {
    fill<double>(formula, hardness, channels, to);
  } else {
    fill<float>(formula, hardness, channels, to);
  }
}

double Gates::to_gradient(std::int64_t channel, double unscaled_sum) const {
  return is_double_ ? unscaled_sum_to_gradient(unscaled_sum, of<double>()[channel])
                    : unscaled_sum_to_gradient(unscaled_sum, of<float>()[channel]);
}

}  // namespace lambda_gelu::kernels
