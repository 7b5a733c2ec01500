// How torch holds an autograd node: std::shared_ptr up to 2.12, c10::intrusive_ptr from 2.13 (pytorch#181782).
#pragma once

#include <torch/csrc/autograd/edge.h>
#include <torch/csrc/autograd/function.h>
#include <torch/version.h>

#include <memory>
#include <type_traits>

namespace lambda_gelu {

#if TORCH_VERSION_MAJOR > 2 || (TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR >= 13)
template <class Node>
using NodePtr = c10::intrusive_ptr<Node>;

template <class Node>
NodePtr<Node> make_node() {
  return c10::make_intrusive<Node>();
}
#else
template <class Node>
using NodePtr = std::shared_ptr<Node>;

template <class Node>
NodePtr<Node> make_node() {
  // deleteNode frees a long chain of nodes in a loop; plain delete would recurse once per node.
  return std::shared_ptr<Node>(new Node(), torch::autograd::deleteNode);
}
#endif

static_assert(std::is_same_v<NodePtr<torch::autograd::Node>, decltype(torch::autograd::Edge::function)>,
              "this torch holds autograd nodes in another smart pointer: extend node_compat.h");

}  // namespace lambda_gelu
