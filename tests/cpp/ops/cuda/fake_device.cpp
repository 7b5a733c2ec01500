#include "fake_device.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <simt.h>
#include <torch/library.h>

#include <array>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>

namespace lambda_gelu::testing::fake_cuda {
namespace {

std::array<std::array<char, kStreams>, kDevices> handles;  // only their addresses count
thread_local int device_now = 0;
thread_local std::array<int, kDevices> streams_now = {};

std::mutex mutex;  // of what follows
std::optional<int> allocations_until_failure;
std::map<void*, std::int64_t>& sizes = *new std::map<void*, std::int64_t>;  // of live blocks; outlives every tensor
Recording* recording = nullptr;

template <class Note>
void note(const Note& take) {
  const std::lock_guard lock(mutex);
  if (recording != nullptr) take(*recording);
}

void wait() {
  note([](Recording& to) { ++to.waits; });
}

int checked(c10::Device device) {
  TORCH_CHECK(device.is_cuda() && device.index() >= 0 && device.index() < kDevices, "no such device: ", device);
  return device.index();
}

// --- Devices and streams ---------------------------------------------------------------------------------------------

struct GuardImpl final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return c10::kCUDA; }
  c10::Device exchangeDevice(c10::Device device) const override {
    return {c10::kCUDA, static_cast<c10::DeviceIndex>(std::exchange(device_now, checked(device)))};
  }
  c10::Device getDevice() const override { return {c10::kCUDA, static_cast<c10::DeviceIndex>(device_now)}; }
  void setDevice(c10::Device device) const override { device_now = checked(device); }
  void uncheckedSetDevice(c10::Device device) const noexcept override { device_now = device.index(); }
  c10::DeviceIndex deviceCount() const noexcept override { return kDevices; }

  c10::Stream getStream(c10::Device device) const override {
    simt::device().index = device_now;  // whoever launches asks for the stream first; the engine's threads start idle
    return stream(checked(device), streams_now[device.index()]);
  }
  c10::Stream getDefaultStream(c10::Device device) const override { return stream(checked(device), 0); }
  c10::Stream exchangeStream(c10::Stream to) const override {
    return stream(to.device_index(), std::exchange(streams_now[to.device_index()], static_cast<int>(to.id())));
  }
  void* getStreamNativeHandle(c10::Stream of) const override { return native_handle(of); }
  bool queryStream(const c10::Stream& /*stream*/) const override { return true; }
  void synchronizeStream(const c10::Stream& /*stream*/) const override { wait(); }

  // Everything is over when it returns, so that an event has nothing to wait for.
  void record(void** event, const c10::Stream& /*stream*/, c10::DeviceIndex /*device*/,
              c10::EventFlag /*flag*/) const override {
    *event = &handles;
  }
  void block(void* /*event*/, const c10::Stream& /*stream*/) const override {}
  bool queryEvent(void* /*event*/) const override { return true; }
  void synchronizeEvent(void* /*event*/) const override { wait(); }
  void synchronizeDevice(c10::DeviceIndex /*device*/) const override { wait(); }
};
C10_REGISTER_GUARD_IMPL(CUDA, GuardImpl)

// --- Memory ----------------------------------------------------------------------------------------------------------

void free_block(void* data) {
  {
    const std::lock_guard lock(mutex);
    sizes.erase(data);
  }
  std::free(data);
}

struct Allocator final : c10::Allocator {
  c10::DataPtr allocate(std::size_t size) override {
    const auto bytes = static_cast<std::int64_t>(size);
    const c10::Device device(c10::kCUDA, static_cast<c10::DeviceIndex>(device_now));
    if (bytes == 0) return {nullptr, device};
    {
      const std::lock_guard lock(mutex);
      if (allocations_until_failure && (*allocations_until_failure)-- == 0) {
        allocations_until_failure.reset();
        TORCH_CHECK_WITH(OutOfMemoryError, false, "CUDA out of memory. Tried to allocate ", bytes, " bytes.");
      }
      if (recording != nullptr) {
        recording->allocations.push_back(
            {bytes, device_now, native_handle(stream(device_now, streams_now[device_now]))});
      }
    }
    constexpr std::size_t kAlignment = 512;  // as of the caching allocator
    void* data = std::aligned_alloc(kAlignment, (size + kAlignment - 1) / kAlignment * kAlignment);
    std::memset(data, 0xff, size);  // NaN, so that nothing that was not written passes for a result
    const std::lock_guard lock(mutex);
    sizes[data] = bytes;
    return {data, data, free_block, device};
  }
  c10::DeleterFnPtr raw_deleter() const override { return free_block; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override { default_copy_data(to, from, bytes); }
};

Allocator& allocator() {
  static auto* const instance = new Allocator;  // outlives every tensor
  return *instance;
}

// --- What ATen asks a backend ----------------------------------------------------------------------------------------

struct Hooks final : at::CUDAHooksInterface {
  explicit Hooks(at::CUDAHooksArgs /*args*/) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex /*device*/) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return kDevices; }
  c10::DeviceIndex current_device() const override { return static_cast<c10::DeviceIndex>(device_now); }
  c10::DeviceIndex getCurrentDevice() const override { return current_device(); }
  c10::Allocator* getCUDADeviceAllocator() const override { return &allocator(); }
  // at::manual_seed seeds every device's.
  const at::Generator& getDefaultGenerator(c10::DeviceIndex /*device*/) const override {
    return at::detail::getDefaultCPUGenerator();
  }
  void deviceSynchronize(c10::DeviceIndex /*device*/) const override { wait(); }
};

const auto registered = [] {
  at::CUDAHooksRegistry()->Register("CUDAHooks", [](at::CUDAHooksArgs args) -> std::unique_ptr<at::CUDAHooksInterface> {
    return std::make_unique<Hooks>(args);
  });
  c10::SetAllocator(c10::kCUDA, &allocator());
  return true;
}();

// --- ATen's operators ------------------------------------------------------------------------------------------------

constexpr c10::DispatchKeySet kKeys(c10::DispatchKey::CUDA);

c10::Device device_or_current(std::optional<c10::Device> device) {
  return device && device->has_index() ? *device : c10::Device(c10::kCUDA, static_cast<c10::DeviceIndex>(device_now));
}

at::Tensor empty(at::IntArrayRef sizes, std::optional<at::ScalarType> dtype, std::optional<at::Layout> /*layout*/,
                 std::optional<c10::Device> device, std::optional<bool> /*pin_memory*/,
                 std::optional<at::MemoryFormat> format) {
  const c10::DeviceGuard guard(device_or_current(device));
  return at::Tensor(at::detail::empty_generic(sizes, &allocator(), kKeys, c10::dtype_or_default(dtype), format));
}

at::Tensor empty_strided(at::IntArrayRef sizes, at::IntArrayRef strides, std::optional<at::ScalarType> dtype,
                         std::optional<at::Layout> /*layout*/, std::optional<c10::Device> device,
                         std::optional<bool> /*pin_memory*/) {
  const c10::DeviceGuard guard(device_or_current(device));
  return at::Tensor(
      at::detail::empty_strided_generic(sizes, strides, &allocator(), kKeys, c10::dtype_or_default(dtype)));
}

// The same memory as a CPU tensor.
at::Tensor on_host(const at::Tensor& tensor, void* data) {
  return at::from_blob(data, tensor.sizes(), tensor.strides(), at::TensorOptions().dtype(tensor.dtype()));
}

at::Tensor& copy(at::Tensor& self, const at::Tensor& from, bool /*non_blocking*/) {
  note([](Recording& to) { to.operators.emplace_back("aten::copy_"); });
  const c10::impl::ExcludeDispatchKeyGuard no_cuda(kKeys);
  auto target = self.is_cuda() ? on_host(self, self.mutable_data_ptr()) : self;
  target.copy_(from.is_cuda() ? on_host(from, const_cast<void*>(from.const_data_ptr())) : from);
  return self;
}

at::Tensor copy_from_and_resize(const at::Tensor& from, const at::Tensor& to) {
  if (from.sizes() != to.sizes()) {
    to.unsafeGetTensorImpl()->set_storage_keep_dtype(at::empty(from.sizes(), to.options()).storage());
    to.unsafeGetTensorImpl()->set_sizes_contiguous(from.sizes());
  }
  return to.copy_(from);
}

void on_cpu(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  note([&](Recording& to) {
    to.operators.push_back(op.schema().name());
    if (op.schema().name() == "aten::_local_scalar_dense") ++to.waits;
  });
  const auto outer = [] {
    const std::lock_guard lock(mutex);
    return std::exchange(recording, nullptr);  // the copies are the fallback's own
  }();
  at::native::cpu_fallback(op, stack);
  const std::lock_guard lock(mutex);
  recording = outer;
}

TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("as_strided", at::native::as_strided_tensorimpl);
  m.impl("view", at::native::view);
  m.impl("_reshape_alias", at::native::_reshape_alias);
  m.impl("copy_", copy);
  m.impl("_copy_from_and_resize", copy_from_and_resize);
}

TORCH_LIBRARY_IMPL(_, CUDA, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&on_cpu>());
}

}  // namespace

c10::Stream stream(int device, int id) {
  return c10::Stream(c10::Stream::UNSAFE, c10::Device(c10::kCUDA, static_cast<c10::DeviceIndex>(device)), id);
}

void* native_handle(const c10::Stream& stream) {
  return &handles[stream.device_index()][stream.id()];
}

int current_device() {
  return device_now;
}

void fail_allocation(int skip) {
  const std::lock_guard lock(mutex);
  allocations_until_failure = skip;
}

void allow_allocations() {
  const std::lock_guard lock(mutex);
  allocations_until_failure.reset();
}

std::int64_t live_bytes() {
  const std::lock_guard lock(mutex);
  std::int64_t bytes = 0;
  for (const auto& [data, size] : sizes) bytes += size;
  return bytes;
}

Recording::Recording() {
  const std::lock_guard lock(mutex);
  TORCH_INTERNAL_ASSERT(recording == nullptr, "one recording at a time");
  recording = this;
}

Recording::~Recording() {
  const std::lock_guard lock(mutex);
  recording = nullptr;
}

}  // namespace lambda_gelu::testing::fake_cuda
