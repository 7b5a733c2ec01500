// y = x Phi(lambda x) on the GPU.
#include <kernels/cuda/launch.h>

namespace lambda_gelu::kernels::cuda {
namespace {

template <class Storage, class Operand>
void launch_forward(const Plan& plan, const Operand& input, typename Storage::Element* y,
                    const HardnessSource& hardness, void* stream) {
  if (plan.cut == Cut::kSpan) {
    const auto span_forward_kernel = span_forward<Storage, Operand>;
    LAMBDA_GELU_LAUNCH(span_forward_kernel, plan.blocks(), kBlockThreads, stream, input, y, plan.span.size,
                       plan.span.iterations, hardness);
  } else if (plan.cut == Cut::kPlanes) {
    const auto planes_forward_kernel = plan.planes.vectors_in_one_plane ? planes_forward<Storage, true, Operand>
                                                                        : planes_forward<Storage, false, Operand>;
    LAMBDA_GELU_LAUNCH(planes_forward_kernel, plan.blocks(), kBlockThreads, stream, input, y, plane_tiling(plan.planes),
                       hardness);
  } else {
    const auto columns_forward_kernel = columns_forward<Storage, Operand>;
    LAMBDA_GELU_LAUNCH(columns_forward_kernel, plan.blocks(), kBlockThreads, stream, input, y,
                       column_tiling(plan.columns), hardness);
  }
}

}  // namespace

Status forward(DType dtype, const Geometry& geometry, const Operand& input, void* y, const Hardness& hardness,
               void* stream) {
  if (geometry.size() == 0) return {};
  const Strides layout = make_strides("input", input, geometry.size());
  const Plan plan = make_plan(dtype, geometry);
  const bool dense = is_dense_on_vectors(input.data, layout) && on_vector(y);
  with_storage(dtype, [&]<class Storage>(Storage) {
    using Element = typename Storage::Element;
    const auto* x = static_cast<const Element*>(input.data);
    const HardnessSource source = hardness_source(hardness);
    if (dense) {
      launch_forward<Storage>(plan, DenseOperand<Storage>{x}, static_cast<Element*>(y), source, stream);
    } else {
      launch_forward<Storage>(plan, StridedOperand<Storage>{x, layout}, static_cast<Element*>(y), source, stream);
    }
  });
  return launch_status();
}

std::string architectures() {
#if defined(LAMBDA_GELU_CUDA_ARCHITECTURES)
  return LAMBDA_GELU_CUDA_ARCHITECTURES;
#else
  return {};
#endif
}

}  // namespace lambda_gelu::kernels::cuda
