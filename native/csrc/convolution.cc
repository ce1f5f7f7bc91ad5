// Convolution over NHWC activations and HWIO float32 weights: forward, input gradient, and weight and
// bias gradient in one call. Activations are float32 or bfloat16; oneDNN accumulates in float32.
#include <array>
#include <stdexcept>

#include "runtime.h"

namespace resnet_jax {
namespace {

using dnnl::memory;
using Dims = memory::dims;
using Ints = ffi::Span<const int64_t>;

enum Direction : int64_t { kForward, kBackwardData, kBackwardWeights };
constexpr int64_t kConvertedKernel = -2;  // begins the key of a kernel in a layout of oneDNN; winograd.cc has -1

// What a convolution adds to its sums: y = relu?(conv(x, w) + bias? + residual?).
struct Added {
  bool bias, residual = false, relu = false;
};

// One convolution in terms of oneDNN: its dimensions are in (N, C, H, W) order for every memory layout.
struct Geometry {
  Dims x, w, y, strides, pad_low, pad_high;
  int64_t groups;
  memory::data_type type;

  static Geometry Of(const ffi::AnyBuffer& x, const ffi::AnyBuffer& w, const ffi::AnyBuffer& y, Ints strides,
                     Ints padding, int64_t groups) {
    if (!IsFloatOrBfloat16(x) || x.element_type() != y.element_type() || w.element_type() != ffi::F32) {
      throw std::invalid_argument("activations must be f32 or bf16, all of one type, and weights f32");
    }
    auto xd = x.dimensions(), wd = w.dimensions(), yd = y.dimensions();
    if (xd.size() != 4 || wd.size() != 4 || yd.size() != 4 || strides.size() != 2 || padding.size() != 4) {
      throw std::invalid_argument("expected x and y (N, H, W, C), weights (kh, kw, C / groups, O)");
    }
    Geometry g;
    g.x = {xd[0], xd[3], xd[1], xd[2]};
    g.y = {yd[0], yd[3], yd[1], yd[2]};
    g.w = {wd[3], wd[2], wd[0], wd[1]};
    if (groups > 1) g.w = {groups, wd[3] / groups, wd[2], wd[0], wd[1]};
    g.strides = {strides[0], strides[1]};
    g.pad_low = {padding[0], padding[2]};
    g.pad_high = {padding[1], padding[3]};
    g.groups = groups;
    g.type = x.element_type() == ffi::BF16 ? memory::data_type::bf16 : memory::data_type::f32;
    return g;
  }

  PlanKey Key(Direction direction, Added added, int threads) const {
    PlanKey key = {direction, added.bias, added.residual, added.relu, threads, static_cast<int64_t>(type), groups};
    for (const Dims* dims : {&x, &w, &y, &strides, &pad_low, &pad_high}) key.insert(key.end(), dims->begin(), dims->end());
    return key;
  }

  memory::desc X() const { return {x, type, memory::format_tag::nhwc}; }
  memory::desc Y() const { return {y, type, memory::format_tag::nhwc}; }
  memory::desc Bias() const { return {{y[1]}, memory::data_type::f32, memory::format_tag::a}; }
  // The fastest layout for the primitive, in the type of its products.
  memory::desc AnyWeights(memory::data_type t) const { return {w, t, memory::format_tag::any}; }
  // The caller's layout: HWIO. The last axis contains the outputs of all groups.
  memory::desc UserWeights() const {
    const size_t o = groups > 1 ? 1 : 0;  // a groups axis comes first
    const int64_t out = w[o] * groups, in = w[o + 1], width = w[o + 3];
    Dims user = {1, out, width * in * out, in * out};
    if (groups > 1) user.insert(user.begin(), w[o]);
    return {w, memory::data_type::f32, user};
  }
};

// A convolution primitive and its weight conversion.
struct Plan {
  dnnl::primitive primitive;
  memory::desc weights;        // the layout of the primitive
  memory::desc scratchpad;
  dnnl::reorder convert;       // user -> primitive, or primitive -> user for the weight gradient
  memory::desc convert_scratchpad;
  bool direct = false;         // the primitive uses the user's layout
};

// The key of a kernel in a layout, which plans of other batch sizes share. `plan` is the key for a layout that oneDNN
// does not describe.
PlanKey LayoutKey(const memory::desc& weights, const PlanKey& plan) {
  if (weights.get_format_kind() != memory::format_kind::blocked) return plan;
  PlanKey key = {kConvertedKernel, static_cast<int64_t>(weights.get_data_type()), weights.get_ndims()};
  for (const Dims& numbers : {weights.get_dims(), weights.get_padded_dims(), weights.get_strides(),
                              weights.get_inner_blks(), weights.get_inner_idxs()}) {
    key.insert(key.end(), numbers.begin(), numbers.end());
  }
  return key;
}

dnnl::primitive_attr ScratchpadFromUs() {
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  return attributes;
}

dnnl::convolution_forward::primitive_desc ForwardOf(const Turn& turn, const Geometry& g, Added added) {
  dnnl::primitive_attr attributes = ScratchpadFromUs();
  dnnl::post_ops after;
  if (added.residual) after.append_binary(dnnl::algorithm::binary_add, g.Y());
  if (added.relu) after.append_eltwise(dnnl::algorithm::eltwise_relu, 0.0f, 0.0f);
  attributes.set_post_ops(after);
  return {turn.engine(), dnnl::prop_kind::forward_training, dnnl::algorithm::convolution_direct,
          g.X(), g.AnyWeights(g.type), added.bias ? g.Bias() : memory::desc(), g.Y(),
          g.strides, g.pad_low, g.pad_high, attributes};
}

template <typename Description>
Plan Finish(const Turn& turn, const Geometry& g, const Description& description, const memory::desc& weights,
            bool gradient) {
  Plan plan;
  plan.primitive = dnnl::primitive(description);
  plan.weights = weights;
  plan.scratchpad = description.scratchpad_desc();
  plan.direct = weights == g.UserWeights();
  if (!plan.direct) {
    const memory::desc user = g.UserWeights();
    dnnl::reorder::primitive_desc reorder(turn.engine(), gradient ? weights : user, turn.engine(),
                                          gradient ? user : weights, ScratchpadFromUs());
    plan.convert = dnnl::reorder(reorder);
    plan.convert_scratchpad = reorder.scratchpad_desc();
  }
  return plan;
}

Plan MakePlan(const Turn& turn, const Geometry& g, Direction direction, Added added) {
  const auto forward = ForwardOf(turn, g, direction == kForward ? added : Added{false});
  if (direction == kForward) return Finish(turn, g, forward, forward.weights_desc(), false);
  if (direction == kBackwardData) {
    dnnl::convolution_backward_data::primitive_desc backward(
        turn.engine(), dnnl::algorithm::convolution_direct, g.X(), g.AnyWeights(g.type), g.Y(), g.strides,
        g.pad_low, g.pad_high, forward, ScratchpadFromUs());
    return Finish(turn, g, backward, backward.weights_desc(), false);
  }
  dnnl::convolution_backward_weights::primitive_desc backward(
      turn.engine(), dnnl::algorithm::convolution_direct, g.X(), g.AnyWeights(memory::data_type::f32),
      added.bias ? g.Bias() : memory::desc(), g.Y(), g.strides, g.pad_low, g.pad_high, forward, ScratchpadFromUs());
  return Finish(turn, g, backward, backward.diff_weights_desc(), true);
}

class Call {
 public:
  Call(const Turn& turn, const Geometry& geometry, Direction direction, Added added)
      : turn_(turn), geometry_(geometry), key_(geometry.Key(direction, added, turn.threads())) {
    static auto* cache = new PlanCache<Plan>;
    plan_ = &cache->Get(turn_, key_, [&] { return MakePlan(turn_, geometry, direction, added); });
  }

  memory Wrap(const memory::desc& desc, void* data) { return memory(desc, turn_.engine(), data); }

  // The user's weights in the primitive's layout and type.
  memory Weights(void* user) {
    if (plan_->direct) return Wrap(plan_->weights, user);
    memory converted = Wrap(plan_->weights, turn_.weights().Reserve(plan_->weights.get_size()));
    Convert(Wrap(geometry_.UserWeights(), user), converted);
    return converted;
  }

  // The same, kept for the next call with this digest.
  memory KeptWeights(void* user, const ffi::AnyBuffer& digest) {
    if (plan_->direct) return Wrap(plan_->weights, user);
    const auto convert = [&](void* to) { Convert(Wrap(geometry_.UserWeights(), user), Wrap(plan_->weights, to)); };
    const PlanKey key = KernelKey(LayoutKey(plan_->weights, key_), digest);
    return Wrap(plan_->weights, ConvertedKernels(turn_).Get(turn_, key, plan_->weights.get_size(), convert));
  }

  // Where the primitive writes the weight gradient; StoreWeights converts it to the user's layout.
  memory WeightsGradient(void* user) {
    return Wrap(plan_->weights, plan_->direct ? user : turn_.weights().Reserve(plan_->weights.get_size()));
  }
  void StoreWeights(const memory& gradient, void* user) {
    if (!plan_->direct) Convert(gradient, Wrap(geometry_.UserWeights(), user));
  }

  void Run(std::unordered_map<int, memory> arguments) {
    arguments.emplace(DNNL_ARG_SCRATCHPAD,
                      Wrap(plan_->scratchpad, turn_.scratchpad().Reserve(plan_->scratchpad.get_size())));
    plan_->primitive.execute(turn_.stream(), arguments);
    turn_.stream().wait();
  }

 private:
  void Convert(const memory& from, const memory& to) {
    const memory::desc& scratchpad = plan_->convert_scratchpad;
    plan_->convert.execute(turn_.stream(),
                           {{DNNL_ARG_FROM, from}, {DNNL_ARG_TO, to},
                            {DNNL_ARG_SCRATCHPAD, Wrap(scratchpad, turn_.scratchpad().Reserve(scratchpad.get_size()))}});
  }

  const Turn& turn_;
  const Geometry& geometry_;
  const PlanKey key_;
  Plan* plan_;
};

// y = conv(x, w) + bias; bias is (O,) or empty.
ffi::Error Forward(ffi::AnyBuffer x, ffi::AnyBuffer w, ffi::AnyBuffer bias, ffi::Result<ffi::AnyBuffer> y,
                   Ints strides, Ints padding, int64_t groups) {
  return Guarded("convolution", [&](const Turn& turn) {
    const Geometry g = Geometry::Of(x, w, *y, strides, padding, groups);
    const bool has_bias = BiasOf(bias, g.y[1]) != nullptr;
    ExpectWrites(*y);
    Call call(turn, g, kForward, Added{has_bias});
    std::unordered_map<int, memory> arguments = {{DNNL_ARG_SRC, call.Wrap(g.X(), x.untyped_data())},
                                                 {DNNL_ARG_WEIGHTS, call.Weights(w.untyped_data())},
                                                 {DNNL_ARG_DST, call.Wrap(g.Y(), y->untyped_data())}};
    if (has_bias) arguments.emplace(DNNL_ARG_BIAS, call.Wrap(g.Bias(), bias.untyped_data()));
    call.Run(std::move(arguments));
  }, x, w, bias, *y);
}

// y = relu?(conv(x, w) + bias? + residual?); bias, residual and digest are empty if they are missing.
ffi::Error Inference(ffi::AnyBuffer x, ffi::AnyBuffer w, ffi::AnyBuffer bias, ffi::AnyBuffer residual,
                     ffi::AnyBuffer digest, ffi::Result<ffi::AnyBuffer> y, Ints strides, Ints padding, int64_t groups,
                     bool relu) {
  return Guarded("convolution for inference", [&](const Turn& turn) {
    const Geometry g = Geometry::Of(x, w, *y, strides, padding, groups);
    const bool has_bias = BiasOf(bias, g.y[1]) != nullptr;
    void* const added = ResidualOf(residual, *y);
    ExpectWrites(*y);
    Call call(turn, g, kForward, {has_bias, added != nullptr, relu});
    std::unordered_map<int, memory> arguments = {
        {DNNL_ARG_SRC, call.Wrap(g.X(), x.untyped_data())},
        {DNNL_ARG_WEIGHTS, KeepsKernels(digest, *y) ? call.KeptWeights(w.untyped_data(), digest)
                                                    : call.Weights(w.untyped_data())},
        {DNNL_ARG_DST, call.Wrap(g.Y(), y->untyped_data())}};
    if (has_bias) arguments.emplace(DNNL_ARG_BIAS, call.Wrap(g.Bias(), bias.untyped_data()));
    if (added != nullptr) {
      arguments.emplace(DNNL_ARG_ATTR_MULTIPLE_POST_OP(0) | DNNL_ARG_SRC_1, call.Wrap(g.Y(), added));
    }
    call.Run(std::move(arguments));
  }, x, w, bias, residual, *y);
}

ffi::Error BackwardData(ffi::AnyBuffer dy, ffi::AnyBuffer w, ffi::Result<ffi::AnyBuffer> dx, Ints strides,
                        Ints padding, int64_t groups) {
  return Guarded("convolution input gradient", [&](const Turn& turn) {
    const Geometry g = Geometry::Of(*dx, w, dy, strides, padding, groups);
    ExpectWrites(*dx);
    Call call(turn, g, kBackwardData, Added{false});
    call.Run({{DNNL_ARG_DIFF_DST, call.Wrap(g.Y(), dy.untyped_data())},
              {DNNL_ARG_WEIGHTS, call.Weights(w.untyped_data())},
              {DNNL_ARG_DIFF_SRC, call.Wrap(g.X(), dx->untyped_data())}});
  }, dy, w, *dx);
}

// dbias is (O,) or empty.
ffi::Error BackwardWeights(ffi::AnyBuffer x, ffi::AnyBuffer dy, ffi::Result<ffi::AnyBuffer> dw,
                           ffi::Result<ffi::AnyBuffer> dbias, Ints strides, Ints padding, int64_t groups) {
  return Guarded("convolution weight gradient", [&](const Turn& turn) {
    const Geometry g = Geometry::Of(x, *dw, dy, strides, padding, groups);
    const bool has_bias = dbias->element_count() > 0;
    ExpectWrites(*dw);
    Call call(turn, g, kBackwardWeights, Added{has_bias});
    const memory gradient = call.WeightsGradient(dw->untyped_data());
    std::unordered_map<int, memory> arguments = {{DNNL_ARG_SRC, call.Wrap(g.X(), x.untyped_data())},
                                                 {DNNL_ARG_DIFF_DST, call.Wrap(g.Y(), dy.untyped_data())},
                                                 {DNNL_ARG_DIFF_WEIGHTS, gradient}};
    if (has_bias) arguments.emplace(DNNL_ARG_DIFF_BIAS, call.Wrap(g.Bias(), dbias->untyped_data()));
    call.Run(std::move(arguments));
    call.StoreWeights(gradient, dw->untyped_data());
  }, x, dy, *dw, *dbias);
}

}  // namespace

RESNET_JAX_HANDLER(resnet_jax_conv_forward, Forward, ffi::Ffi::Bind()
                       .Arg<ffi::AnyBuffer>()
                       .Arg<ffi::AnyBuffer>()
                       .Arg<ffi::AnyBuffer>()
                       .Ret<ffi::AnyBuffer>()
                       .Attr<Ints>("strides")
                       .Attr<Ints>("padding")
                       .Attr<int64_t>("groups"));
RESNET_JAX_HANDLER(resnet_jax_conv_inference, Inference, ffi::Ffi::Bind()
                       .Arg<ffi::AnyBuffer>()
                       .Arg<ffi::AnyBuffer>()
                       .Arg<ffi::AnyBuffer>()
                       .Arg<ffi::AnyBuffer>()
                       .Arg<ffi::AnyBuffer>()
                       .Ret<ffi::AnyBuffer>()
                       .Attr<Ints>("strides")
                       .Attr<Ints>("padding")
                       .Attr<int64_t>("groups")
                       .Attr<bool>("relu"));
RESNET_JAX_HANDLER(resnet_jax_conv_backward_data, BackwardData, ffi::Ffi::Bind()
                       .Arg<ffi::AnyBuffer>()
                       .Arg<ffi::AnyBuffer>()
                       .Ret<ffi::AnyBuffer>()
                       .Attr<Ints>("strides")
                       .Attr<Ints>("padding")
                       .Attr<int64_t>("groups"));
RESNET_JAX_HANDLER(resnet_jax_conv_backward_weights, BackwardWeights, ffi::Ffi::Bind()
                       .Arg<ffi::AnyBuffer>()
                       .Arg<ffi::AnyBuffer>()
                       .Ret<ffi::AnyBuffer>()
                       .Ret<ffi::AnyBuffer>()
                       .Attr<Ints>("strides")
                       .Attr<Ints>("padding")
                       .Attr<int64_t>("groups"));

}  // namespace resnet_jax
