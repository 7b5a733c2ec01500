// What the nodes of this library have in common: saved tensors, the options of the op, and compiled autograd.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/dynamo/compiled_autograd.h>

#include <array>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

namespace lambda_gelu {

/// The arguments of the op that are not tensors.
struct Options {
  int64_t channel_dim = 1;
  std::optional<double> temperature;
};

/// A node with N saved tensors, one gradient for each. Derived provides
///   static variable_list compute(variable_list& grads, const Tensors& saved, const Options&, const Needs&)
/// which must consist of dispatcher calls: compiled autograd traces it.
template <class Derived, size_t N>
class SavedNode : public torch::autograd::TraceableFunction {
 public:
  using variable_list = torch::autograd::variable_list;
  using Tensors = std::array<at::Tensor, N>;
  using Needs = std::array<bool, N>;

  /// Once, after construction and before the output gets its history.
  template <class... Inputs>
  void record(const Options& options, const Inputs&... inputs) {
    static_assert(sizeof...(Inputs) == N);
    set_next_edges(torch::autograd::collect_next_edges(inputs...));
    saved_ = {torch::autograd::SavedVariable(inputs, /*is_output=*/false)...};
    options_ = options;
  }

  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    Tensors saved;
    for (size_t i = 0; i < N; ++i) saved[i] = saved_[i].unpack();
    return Derived::compute(grads, saved, options_, needs());
  }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (auto& variable : saved_) variable.reset_data();
  }

  void compiled_args(torch::dynamo::autograd::CompiledNodeArgs& args) const override {
    for (const auto& variable : saved_) args.collect(variable, /*is_output=*/false);
    args.collect(options_.channel_dim);
    args.collect(options_.temperature);
    for (const bool need : needs()) args.collect(need);
  }

  // Through the Python compiler, as ATen's own nodes do. Calling apply() here would run it on dummy gradients.
  variable_list apply_with_saved(const variable_list& grads,
                                 torch::dynamo::autograd::SwapSavedVariables& saved) override {
    namespace ca = torch::dynamo::autograd;
    for (auto& variable : saved_) saved.before(variable);
    const auto& compiler = ca::getPyCompilerInterface();
    static const std::string function =
        compiler->bind_function(saved.get_py_compiler(), name(), replay, packed_schema());
    ca::PackedArgs args;
    for (const auto& variable : saved_) args.pack(variable.unpack());
    args.pack(options_.channel_dim);
    args.pack(options_.temperature);
    for (const bool need : needs()) args.pack(need);
    const auto metadata = ca::IValuePacker<std::vector<std::optional<torch::autograd::InputMetadata>>>::pack(
        ca::get_input_metadata(next_edges()));
    auto result = compiler->call_function(saved.get_py_compiler(), "apply_functional", function, grads,
                                          std::move(args).vec(), metadata);
    for (auto& variable : saved_) saved.after(variable);
    return result;
  }

 protected:
  Needs needs() const {
    Needs needs{};
    for (size_t i = 0; i < N; ++i) needs[i] = task_should_compute_output(i);
    return needs;
  }

 private:
  static std::vector<at::TypePtr> packed_schema() {
    namespace ca = torch::dynamo::autograd;
    std::vector<at::TypePtr> schema(N, ca::IValuePacker<at::Tensor>::packed_type());
    schema.push_back(ca::IValuePacker<int64_t>::packed_type());
    schema.push_back(ca::IValuePacker<std::optional<double>>::packed_type());
    schema.insert(schema.end(), N, ca::IValuePacker<bool>::packed_type());
    return schema;
  }

  static variable_list replay(const variable_list& inputs, const std::vector<c10::IValue>& packed) {
    torch::dynamo::autograd::PackedArgs args(packed);
    auto grads = inputs;
    Tensors saved;
    for (auto& tensor : saved) tensor = args.unpack<at::Tensor>();
    Options options;
    options.channel_dim = args.unpack<int64_t>();
    options.temperature = args.unpack<std::optional<double>>();
    Needs needs{};
    for (auto& need : needs) need = args.unpack<bool>();
    return Derived::compute(grads, saved, options, needs);
  }

  std::array<torch::autograd::SavedVariable, N> saved_;
  Options options_;
};

}  // namespace lambda_gelu
