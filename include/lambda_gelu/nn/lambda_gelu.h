#pragma once

#include <lambda_gelu/export.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/pimpl.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <ostream>
#include <vector>

namespace lambda_gelu {

namespace detail {
struct SiteObserver;
}

/// Options of LambdaGELU.
struct LAMBDA_GELU_API LambdaGELUOptions {
  /* implicit */ LambdaGELUOptions(int64_t num_parameters = 1) : num_parameters_(num_parameters) {}

  /// Number of lambda: 1, or the number of channels.
  TORCH_ARG(int64_t, num_parameters);
  /// lambda at the start, finite and above 1. None: s = 0, that is lambda = 1 + ln 2 for any temperature (our choice:
  /// arXiv 2603.21991 does not give its own).
  TORCH_ARG(std::optional<double>, init_hardness);
  /// tau of lambda = 1 + softplus(s / tau), finite and positive (the default is ours).
  TORCH_ARG(double, temperature) = 0.1;
  /// Dimension of the input with one lambda per index, where num_parameters > 1; negative counts from the end.
  TORCH_ARG(int64_t, channel_dim) = 1;
};

/// GELU with a learnable hardness, f(x; lambda) = x Phi(lambda x) (arXiv 2603.21991): lambda = 1 is GELU, lambda ->
/// infinity is ReLU. lambda = 1 + softplus(s / tau) with s = `raw_hardness`.
///
/// While *frozen* the forward uses the buffer `hardness_override`, which no optimizer, momentum, weight decay or
/// learning-rate schedule can move; `raw_hardness` stays in the graph with a gradient that is exactly zero. Once
/// *substituted* (to_relu_) the forward is ReLU: that is a mode of the module, because C++ cannot replace the children
/// of an arbitrary module.
///
/// save() and load() carry s, the override, tau and the substituted mode. A checkpoint with another tau makes the
/// module adopt that tau; one with another number of lambda is refused and leaves this module as it was (torch loads a
/// model module by module: those before it are already loaded).
///
/// Errors: c10::ValueError and c10::TypeError that name the argument, what was expected and what came; after one
/// nothing has changed.
class LAMBDA_GELU_API LambdaGELUImpl : public torch::nn::Cloneable<LambdaGELUImpl> {
 public:
  /* implicit */ LambdaGELUImpl(const LambdaGELUOptions& options = {});

  /// Registers parameter and buffer; called by the constructor and clone().
  void reset() override;
  /// Puts lambda back to its initial value, learned and not substituted.
  void reset_parameters();

  /// input: float32, float64, bfloat16 or float16, any shape; with num_parameters > 1, input.size(channel_dim) must be
  /// num_parameters. Returns the input's shape and dtype.
  at::Tensor forward(const at::Tensor& input);

  /// lambda as the forward uses it, shape (num_parameters,): float64 where raw_hardness is, else float32.
  /// Differentiable with respect to raw_hardness while learned, a detached copy while frozen.
  at::Tensor hardness() const;

  /// Sets lambda: s while learned (then it must be above 1: lambda = 1 has no finite s), the override while frozen.
  void set_hardness(double value);
  /// The same with 1 or num_parameters values.
  void set_hardness(const at::Tensor& value);

  /// From now on the forward uses the present lambda, whatever happens to raw_hardness.
  void freeze_hardness();
  /// Writes the override back into s, which is learned from now on. Refused where an override is not above 1. Momentum
  /// that an optimizer holds for s is left as it is.
  void unfreeze_hardness();
  bool is_frozen() const { return frozen_; }

  /// Whether the forward is ReLU for good. set_substituted(false) brings lambda-GELU back.
  bool is_substituted() const { return substituted_; }
  void set_substituted(bool substituted) { substituted_ = substituted; }

  int64_t num_parameters() const { return options_.num_parameters(); }
  /// tau. It cannot be set: with another tau the same s means another lambda.
  double temperature() const { return options_.temperature(); }
  int64_t channel_dim() const { return options_.channel_dim(); }

  void pretty_print(std::ostream& stream) const override;
  std::shared_ptr<torch::nn::Module> clone(const std::optional<at::Device>& device = std::nullopt) const override;
  void save(torch::serialize::OutputArchive& archive) const override;
  void load(torch::serialize::InputArchive& archive) override;
  /// bfloat16 and float16 leave s and the override in float32 or float64: 16 bits would round a scheduled lambda, and
  /// lose the small steps in which s is learned.
  void to(at::Device device, at::ScalarType dtype, bool non_blocking = false) override;
  void to(at::ScalarType dtype, bool non_blocking = false) override;
  void to(at::Device device, bool non_blocking = false) override;

  at::Tensor raw_hardness;       ///< s, the trained parameter, shape (num_parameters,)
  at::Tensor hardness_override;  ///< lambda while frozen, NaN while learned, shape (num_parameters,)

 private:
  friend class ReluSubstituted;
  friend class ObserveActivations;

  at::Tensor checked_hardness(const at::Tensor& value) const;
  at::Tensor checked_raw(const at::Tensor& hardness) const;
  void clear_override();

  LambdaGELUOptions options_;
  bool frozen_ = false;
  bool substituted_ = false;
  // Of living guards, neither copied nor saved.
  int relu_guards_ = 0;
  std::vector<std::shared_ptr<detail::SiteObserver>> observers_;
};

TORCH_MODULE(LambdaGELU);

}  // namespace lambda_gelu
