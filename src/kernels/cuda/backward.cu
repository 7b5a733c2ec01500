// dx and dlambda on the GPU: one pass over memory, and a small second kernel that adds the partial sums.
#include <kernels/cuda/launch.h>

#include <bit>

namespace lambda_gelu::kernels::cuda {
namespace {

template <class Storage>
struct Outputs {
  typename Storage::Element* dx;
  double* partials;
  void* gradients;
};

template <class Storage, class Operand>
void launch_backward(const Plan& plan, const Operand& grad_output, const Operand& input, const Outputs<Storage>& out,
                     const HardnessSource& hardness, void* stream) {
  if (plan.cut == Cut::kSpan) {
    const auto span_backward_kernel = span_backward<Storage, Operand>;
    LAMBDA_GELU_LAUNCH(span_backward_kernel, plan.blocks(), kBlockThreads, stream, grad_output, input, out.dx,
                       plan.span.size, plan.span.iterations, hardness, out.partials, out.gradients);
  } else if (plan.cut == Cut::kPlanes) {
    const auto planes_backward_kernel = plan.planes.vectors_in_one_plane ? planes_backward<Storage, true, Operand>
                                                                         : planes_backward<Storage, false, Operand>;
    LAMBDA_GELU_LAUNCH(planes_backward_kernel, plan.blocks(), kBlockThreads, stream, grad_output, input, out.dx,
                       plane_tiling(plan.planes), hardness, out.partials);
  } else {
    const auto columns_backward_kernel = columns_backward<Storage, Operand>;
    LAMBDA_GELU_LAUNCH(columns_backward_kernel, plan.blocks(), kBlockThreads, stream, grad_output, input, out.dx,
                       column_tiling(plan.columns), hardness, out.partials);
  }
}

PartialSums partial_sums(const Plan& plan, const Geometry& geometry) {
  switch (plan.cut) {
    case Cut::kSpan:
      return {.rows = plan.span.tiles, .most = Divisor(1)};
    case Cut::kPlanes:
      return {.channels = geometry.channels,
              .rows = geometry.outer,
              .most = Divisor(geometry.inner / plan.planes.tile + 2),
              .plane = geometry.inner,
              .tile_shift = std::countr_zero(static_cast<std::uint64_t>(plan.planes.tile))};
    default:
      const std::int64_t row = geometry.channels * geometry.inner;
      return {.channels = geometry.channels,
              .rows = plan.columns.chunks * plan.columns.fold,
              .most = Divisor(geometry.inner),
              .row = row};
  }
}

// Blocks that are enough for the second stage; beyond them neighbouring channels share one, whose reads then meet.
constexpr std::int64_t kManySecondStageBlocks = 128;
constexpr int kMostChannelShift = 5;

template <class T>
void launch_second_stage(const PartialSums& layout, const double* partials, const HardnessSource& hardness,
                         void* gradients, void* stream) {
  int channel_shift = 0;
  while (channel_shift < kMostChannelShift && layout.channels >> channel_shift > kManySecondStageBlocks)
    ++channel_shift;
  const std::int64_t blocks = (layout.channels + (1 << channel_shift) - 1) >> channel_shift;
  const auto second_stage_kernel = second_stage<T>;
  LAMBDA_GELU_LAUNCH(second_stage_kernel, blocks, kSecondStageThreads, stream, partials, layout, channel_shift,
                     hardness, gradients);
}

}  // namespace

std::int64_t backward_workspace(DType dtype, const Geometry& geometry) {
  if (geometry.size() == 0) return 0;
  const Plan plan = make_plan(dtype, geometry);
  return plan.has_second_stage() ? plan.partials() * static_cast<std::int64_t>(sizeof(double)) : 0;
}

Status backward(DType dtype, const Geometry& geometry, const Operand& grad_output, const Operand& input, void* dx,
                const Hardness& hardness, void* grad_hardness, void* workspace, void* stream) {
  if (geometry.size() == 0) return {};
  const Strides g_layout = make_strides("grad_output", grad_output, geometry.size());
  const Strides x_layout = make_strides("input", input, geometry.size());
  const Plan plan = make_plan(dtype, geometry);
  const bool dense =
      is_dense_on_vectors(grad_output.data, g_layout) && is_dense_on_vectors(input.data, x_layout) && on_vector(dx);
  Status status;
  with_storage(dtype, [&]<class Storage>(Storage) {
    using Element = typename Storage::Element;
    const auto* g = static_cast<const Element*>(grad_output.data);
    const auto* x = static_cast<const Element*>(input.data);
    const Outputs<Storage> out{static_cast<Element*>(dx), static_cast<double*>(workspace), grad_hardness};
    const HardnessSource source = hardness_source(hardness);
    if (dense) {
      launch_backward<Storage>(plan, DenseOperand<Storage>{g}, DenseOperand<Storage>{x}, out, source, stream);
    } else {
      launch_backward<Storage>(plan, StridedOperand<Storage>{g, g_layout}, StridedOperand<Storage>{x, x_layout}, out,
                               source, stream);
    }
    status = launch_status();
    if (status && plan.has_second_stage()) {
      launch_second_stage<typename Storage::Compute>(partial_sums(plan, geometry), out.partials, source, out.gradients,
                                                     stream);
      status = launch_status();
    }
  });
  return status;
}

}  // namespace lambda_gelu::kernels::cuda
