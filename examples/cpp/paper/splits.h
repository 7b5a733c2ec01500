// The data of a system as tensors.
#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <optional>

#include "paper/settings.h"

namespace paper {

/// x (N, ...) and y (N, ...): images and labels, or windows of bytes and the same one byte later.
struct Split {
  at::Tensor x, y;

  int64_t size() const { return y.size(0); }
  Split slice(int64_t start, int64_t count) const;
  Split select(const at::Tensor& chosen) const;
  /// What the network is given: bytes become numbers of rows.
  at::Tensor inputs() const;
  at::Tensor targets() const;
};

/// `held_out` decides, `test` is reported, `calibration` is the part of `train` that sites are measured on.
struct Splits {
  Split train, held_out, calibration, test;
};

/// Reads what the system is trained on from a folder with fashion-mnist/ and wikitext-2/. Throws MissingData and
/// std::runtime_error, as data.h says.
Splits load(const System& system, const std::filesystem::path& folder, std::optional<int> examples);

}  // namespace paper
