#include "paper/networks.h"

#include <ATen/Functions.h>
#include <torch/nn/init.h>
#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/normalization.h>

#include <cmath>
#include <functional>
#include <string>
#include <vector>

namespace paper {
namespace {

using torch::nn::Embedding;
using torch::nn::LayerNorm;
using torch::nn::Linear;

constexpr int64_t kClasses = 10, kPixels = 784, kHiddenLayers = 4, kHidden = 256;
constexpr int64_t kBytes = 256, kContext = 64, kWidth = 128, kHeads = 4, kBlocks = 4;
constexpr double kInitialDeviation = 0.02;

using Function = std::function<at::Tensor(const at::Tensor&)>;

// What a site computes; only λ-GELU is a child of its parent.
Function make_site(torch::nn::Module& parent, const std::string& name, Activation activation, double temperature) {
  if (activation == Activation::kGELU) return [](const at::Tensor& x) { return at::gelu(x); };
  if (activation == Activation::kReLU) return [](const at::Tensor& x) { return at::relu(x); };
  const auto options = lambda_gelu::LambdaGELUOptions().temperature(temperature);
  return [site = parent.register_module(name, lambda_gelu::LambdaGELU(options))](const at::Tensor& x) mutable {
    return site->forward(x);
  };
}

class MLP : public Network {
 public:
  MLP(Activation activation, double temperature) {
    for (int64_t i = 0; i < kHiddenLayers; ++i) {
      hidden_.push_back(register_module(std::to_string(2 * i), Linear(i == 0 ? kPixels : kHidden, kHidden)));
      sites_.push_back(make_site(*this, std::to_string(2 * i + 1), activation, temperature));
    }
    output_ = register_module(std::to_string(2 * kHiddenLayers), Linear(kHidden, kClasses));
  }

  at::Tensor forward(const at::Tensor& x) override {
    at::Tensor y = x;
    for (size_t i = 0; i < hidden_.size(); ++i) y = sites_[i](hidden_[i]->forward(y));
    return output_->forward(y);
  }

 private:
  std::vector<Linear> hidden_;
  std::vector<Function> sites_;
  Linear output_{nullptr};
};

class Attention : public torch::nn::Module {
 public:
  Attention()
      : qkv(register_module("qkv", Linear(kWidth, 3 * kWidth))), out(register_module("out", Linear(kWidth, kWidth))) {}

  at::Tensor forward(const at::Tensor& x) {
    const auto parts = qkv->forward(x).unflatten(-1, {3, kHeads, kWidth / kHeads}).permute({2, 0, 3, 1, 4}).unbind();
    const auto mixed = at::scaled_dot_product_attention(parts[0], parts[1], parts[2], /*attn_mask=*/{},
                                                        /*dropout_p=*/0.0, /*is_causal=*/true);
    return out->forward(mixed.transpose(1, 2).flatten(2));
  }

  Linear qkv, out;
};

// The children of torch's nn.Sequential, by number.
class MLPOfBlock : public torch::nn::Module {
 public:
  MLPOfBlock(Activation activation, double temperature)
      : up(register_module("0", Linear(kWidth, 4 * kWidth))),
        site(make_site(*this, "1", activation, temperature)),
        down(register_module("2", Linear(4 * kWidth, kWidth))) {}

  at::Tensor forward(const at::Tensor& x) { return down->forward(site(up->forward(x))); }

  Linear up;
  Function site;
  Linear down;
};

class Block : public torch::nn::Module {
 public:
  Block(Activation activation, double temperature)
      : norm1(register_module("norm1", LayerNorm(std::vector<int64_t>{kWidth}))),
        norm2(register_module("norm2", LayerNorm(std::vector<int64_t>{kWidth}))),
        attention(register_module("attention", std::make_shared<Attention>())),
        mlp(register_module("mlp", std::make_shared<MLPOfBlock>(activation, temperature))) {}

  at::Tensor forward(const at::Tensor& x) {
    const auto y = x + attention->forward(norm1->forward(x));
    return y + mlp->forward(norm2->forward(y));
  }

  LayerNorm norm1, norm2;
  std::shared_ptr<Attention> attention;
  std::shared_ptr<MLPOfBlock> mlp;
};

class Blocks : public torch::nn::Module {
 public:
  Blocks(Activation activation, double temperature) {
    for (int64_t i = 0; i < kBlocks; ++i) {
      blocks.push_back(register_module(std::to_string(i), std::make_shared<Block>(activation, temperature)));
    }
    // In Python's order, which the random numbers follow.
    for (const auto& block : blocks) {
      for (const auto& linear : {block->attention->qkv, block->attention->out, block->mlp->up, block->mlp->down}) {
        torch::nn::init::normal_(linear->weight, 0, kInitialDeviation);
        torch::nn::init::zeros_(linear->bias);
      }
    }
    for (const auto& block : blocks) {
      for (const auto& last : {block->attention->out, block->mlp->down}) {
        torch::nn::init::normal_(last->weight, 0, kInitialDeviation / std::sqrt(2.0 * kBlocks));
      }
    }
  }

  std::vector<std::shared_ptr<Block>> blocks;
};

class GPT : public Network {
 public:
  GPT(Activation activation, double temperature)
      : embedding_(register_module("embedding", Embedding(kBytes, kWidth))),
        position_(register_parameter("position", at::empty({kContext, kWidth}))) {
    for (const auto& weight : {embedding_->weight, position_}) {
      torch::nn::init::normal_(weight, 0, kInitialDeviation);
    }
    blocks_ = register_module("blocks", std::make_shared<Blocks>(activation, temperature));
    norm_ = register_module("norm", LayerNorm(std::vector<int64_t>{kWidth}));
  }

  at::Tensor forward(const at::Tensor& x) override {
    auto y = embedding_->forward(x) + position_.slice(0, 0, x.size(1));
    for (const auto& block : blocks_->blocks) y = block->forward(y);
    return at::linear(norm_->forward(y), embedding_->weight);
  }

 private:
  Embedding embedding_;
  at::Tensor position_;
  std::shared_ptr<Blocks> blocks_;
  LayerNorm norm_{nullptr};
};

}  // namespace

std::shared_ptr<Network> make_network(const System& system, Activation activation) {
  if (system.name == "fashion-mnist") return std::make_shared<MLP>(activation, system.temperature);
  return std::make_shared<GPT>(activation, system.temperature);
}

}  // namespace paper
