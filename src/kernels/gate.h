// Coefficients of the gate Phi(lambda x), the constants derived from lambda, and the contract of the lambda sum.
// Plain C++ without dependencies: shared by the CPU kernels, the CUDA kernels and their tests on the host.
//
// With z = lambda x and w = k |x|, k = lambda sqrt(1 / (2 ln 2)):  exp(-z^2 / 2) = 2^-(w^2)  and
// Phi(-|z|) = 2^-(w^2) R(w). Tables and rational functions approximate R or log2 of the product; docs/kernels.md says
// which is used where and how accurate it is.
#pragma once

#include <math/host_device.h>

#include <cfloat>
#include <cmath>
#include <cstdint>

namespace lambda_gelu::kernels {

// --- The sum over g x^2 phi(z): the same bits for every number of threads and every instruction set -----------------
/// Elements are dealt to this many virtual lanes in turn, from the start of a block.
inline constexpr int kSumLanes = 16;
/// A lane adds in the kernel's compute type for this many elements, then in double.
inline constexpr int kSumBlock = 1024;
/// Lanes are added by one fixed tree at the end of a piece of this many elements: one double per piece.
inline constexpr int kSumPiece = 16384;
/// One lambda per column: rows added in the compute type before they are added in double.
inline constexpr int kSumRows = 64;

// CUDA: the same bits on every run and, where the formula rounds alike, on every GPU. docs/cuda.md describes the cuts.
/// Threads of a block; thread t of an iteration takes the vectors t, t + 256, ... of 16 bytes.
inline constexpr int kBlockThreads = 256;
/// Vectors of one thread and iteration, whose terms it adds in the compute type before it adds them in double.
inline constexpr int kIterationVectors = 2;
/// Threads of the second stage.
inline constexpr int kSecondStageThreads = 1024;

// --- Constants ------------------------------------------------------------------------------------------------------
inline constexpr double kInvSqrt2Pi = 0.39894228040143267794;
/// sqrt(1 / (2 ln 2)) = kSqrtHalfLog2e + kSqrtHalfLog2eLow
inline constexpr double kSqrtHalfLog2e = 0x1.b2da4e9808a53p-1;
inline constexpr double kSqrtHalfLog2eLow = -0x1.dede1a6b5e413p-56;

/// How a kernel evaluates the gate. Each has its own reading of Gate.
enum class Formula : std::uint8_t {
  kRational,     ///< float32 grade: 2^-(w^2) by table and cubic with the exact error of w^2, R = P / Q of degrees 4, 5
  kRationalMid,  ///< 16-bit grade: no compensation, degrees 3, 4
  kLog,          ///< float32 grade, forward only: log2 Phi(-|z|) by 31 quartics, no division
  kLogMid,       ///< 16-bit grade, forward only: the same by 24 cubics
  kDouble,       ///< float64: degrees 9, 10
  kPolynomial,   ///< float32 grade, CUDA: as kRational, 2^-(w^2) by a polynomial of degree 6
  kHardwareExp,  ///< 16-bit grade, CUDA: as kRationalMid, 2^-(w^2) by the hardware's own instruction
};

/// The constants of one lambda. T is the type the kernel computes in.
template <class T>
struct Gate {
  T scale_hi;  ///< k (kLog: k / LogTable::step) rounded to T
  T scale_lo;  ///< what the rounding left
  T limit;     ///< |x| is clamped here; beyond it the gate is 0 or 1
  T slope;     ///< lambda / sqrt(2 pi): z phi(z) = slope |x| 2^-(w^2) in magnitude
};

/// 2^-r on |r| <= 1/16, with the table of 2^-(j/8): relative error 2^-25.2.
struct ExpTable8 {
  /// bits((float)2^(-j/8)) + (j << 20), so that subtracting (n * 8 + j) << 20 leaves 2^-(n + j/8).
  static constexpr std::uint32_t bits[8] = {0x3f800000u, 0x3f7ac0c7u, 0x3f7744fdu, 0x3f75672au,
                                            0x3f7504f3u, 0x3f75fed7u, 0x3f7837f0u, 0x3f7b95c2u};
  static constexpr int shift = 20;
  static constexpr float round = 1572864.0f;  ///< 1.5 * 2^20: adding it rounds to multiples of 1/8
  static constexpr float p[4] = {-0.0554878972f, 0.240257606f, -0.693147242f, 1.0f};  // highest degree first
};

/// 2^r on |r| <= 1/2: relative error 2^-28.9.
struct ExpPolynomial {
  static constexpr float p[7] = {0.000153533618804f,
                                 0.00133988744162f,
                                 0.00961843735778f,
                                 0.0555033247112f,
                                 0.240226479136f,
                                 0.693147202855f,
                                 1.0f};        // highest degree first
  static constexpr float round = 12582912.0f;  ///< 1.5 * 2^23: adding it rounds to an integer
};

/// R(w) on [0, 12.4] to 1.4e-8 relative, rounded to float.
struct RationalFloat {
  static constexpr float p[5] = {0.0078659961f, 0.06609229f, 0.253468364f, 0.515464962f, 0.5f};
  static constexpr float q[6] = {0.0232148711f, 0.195072621f, 0.764567912f, 1.66482067f, 1.97036755f, 1.0f};
};

/// R(w) on [0, 11.2] to 3.8e-7 relative, and smooth beyond.
struct RationalMid {
  static constexpr float p[4] = {0.0272112787f, 0.16359058f, 0.423134208f, 0.5f};
  static constexpr float q[5] = {0.0803203583f, 0.48244676f, 1.31173849f, 1.78569174f, 1.0f};
};

/// R(w) on [0, 33] to 5.4e-17 relative.
struct RationalDouble {
  static constexpr double p[10] = {5.995898407475463176e-6, .0001370376905335638207,
                                   .001533283313825838809,  .01086540375920978025,
                                   .05333636941978876488,   .1874429550108900961,
                                   .4716673457759664949,    .8228275700742155832,
                                   .9119421127128171001,    .5};
  static constexpr double q[11] = {1.769587036967880438e-5,
                                   .0004044433448629284969,
                                   .004537988770611885147,
                                   .03235912813138129698,
                                   .1606590317045941455,
                                   .5759166795323224144,
                                   1.500952813551642182,
                                   2.795628262082467624,
                                   3.548475193596518124,
                                   2.763321504125277792,
                                   1.};
};

/// 2^r on |r| <= 1/2.
struct ExpPolynomialDouble {
  static constexpr double p[12] = {4.4558179083360645e-10, 7.074194297288521e-09,  1.0178057087733941e-07,
                                   1.3215432535912375e-06, 1.5252733841556773e-05, 0.00015403530463724353,
                                   0.001333355814640647,   0.009618129107587256,   0.055504108664821625,
                                   0.24022650695910158,    0.6931471805599453,     1.};
  static constexpr double round = 6755399441055744.0;  ///< 1.5 * 2^52: adding it rounds to an integer
  static constexpr int shift = 52;
};

/// -log2 Phi(-|z|) = base[j] + c0[j] + t (c1[j] + t (c2[j] + t (c3[j] + t c4[j]))) where w = step (j + t), |t| <= 1/2.
/// Entry 31 stands for everything beyond: 2^-127 by bits, that is 0. base is a multiple of 1/16: an even multiple of
/// the grid of ExpTable32, or the two ways of rounding to that grid would break ties differently.
struct LogTable {
  static constexpr double step = 0.3597993;
  static constexpr double end = 30.9;  ///< in steps; z = -12.92
  // clang-format off
  static constexpr float c0[32] = {
      1.08501756e-10f, -0.0511782654f, -0.0416612253f, 0.0450119525f, -0.0287197437f, -0.00352843967f,
      0.0025920833f, -0.00505743455f, -0.0224245563f, -0.0463739038f, 0.0505508631f, 0.0202981345f, -0.0105679948f,
      -0.0407775901f, 0.0557114854f, 0.0297629666f, 0.00709933043f, -0.0116699059f, -0.0260264687f, -0.0355264284f,
      -0.0397869647f, -0.0384758785f, -0.031303212f, -0.0180145279f, 0.00161459367f, 0.0277830046f, 0.0606676824f,
      -0.0245732237f, 0.0222021621f, -0.0488784388f, 0.0123003516f, 0.0f};
  static constexpr float c1[32] = {
      0.487643719f, 0.663544595f, 0.858217835f, 1.06718576f, 1.28689194f, 1.51464796f, 1.74846888f, 1.98690188f,
      2.22888231f, 2.47362542f, 2.72054672f, 2.96920705f, 3.21927142f, 3.47048235f, 3.72263908f, 3.97558379f,
      4.22919035f, 4.48335743f, 4.73800325f, 4.99306059f, 5.24847364f, 5.50419664f, 5.76019096f, 6.0164237f,
      6.27286768f, 6.52949858f, 6.78629684f, 7.04324484f, 7.3003273f, 7.55753088f, 7.81484413f, 0.0f};
  static constexpr float c2[32] = {
      0.0824140832f, 0.0930523798f, 0.101245873f, 0.10742639f, 0.112057231f, 0.115534797f, 0.118166298f,
      0.120178901f, 0.121736817f, 0.122957967f, 0.123927079f, 0.124705426f, 0.12533766f, 0.125856698f, 0.126287043f,
      0.126647115f, 0.126950979f, 0.12720941f, 0.127430826f, 0.127621815f, 0.12778756f, 0.127932265f, 0.128059253f,
      0.12817128f, 0.128270552f, 0.128358915f, 0.128437892f, 0.128508732f, 0.128572524f, 0.128630146f, 0.128682375f,
      0.0f};
  static constexpr float c3[32] = {
      0.0039848024f, 0.00312044774f, 0.00237157103f, 0.00177988701f, 0.00133395509f, 0.00100469938f,
      0.000764500292f, 0.000588434166f, 0.000458761497f, 0.000361450162f, 0.000288940675f, 0.000232616338f,
      0.000190060178f, 0.000157049508f, 0.000131338849f, 0.000109756467f, 9.25104978e-05f, 7.94979424e-05f,
      6.83219841e-05f, 5.86213609e-05f, 5.17335284e-05f, 4.54808469e-05f, 3.95484276e-05f, 3.54506919e-05f,
      3.05384565e-05f, 2.85197275e-05f, 2.55343275e-05f, 2.23901552e-05f, 1.9595167e-05f, 1.79206108e-05f,
      1.67942708e-05f, 0.0f};
  static constexpr float c4[32] = {
      -0.000221411916f, -0.000205121803f, -0.000167829101f, -0.000128664396f, -9.55466239e-05f, -7.00712626e-05f,
      -5.11812796e-05f, -3.7615966e-05f, -2.78672487e-05f, -2.08723341e-05f, -1.5788275e-05f, -1.2102907e-05f,
      -9.36322158e-06f, -7.33792285e-06f, -5.84599911e-06f, -4.66590382e-06f, -3.78714367e-06f, -3.05739013e-06f,
      -2.51024949e-06f, -2.11188558e-06f, -1.74009551e-06f, -1.48772244e-06f, -1.23233019e-06f, -1.06486107e-06f,
      -9.036047e-07f, -7.83205394e-07f, -6.95894187e-07f, -5.84589088e-07f, -5.23954157e-07f, -4.5329395e-07f,
      -4.16741472e-07f, 0.0f};
  static constexpr float base[32] = {
      1.0f, 1.625f, 2.375f, 3.25f, 4.5f, 5.875f, 7.5f, 9.375f, 11.5f, 13.875f, 16.375f, 19.25f, 22.375f, 25.75f,
      29.25f, 33.125f, 37.25f, 41.625f, 46.25f, 51.125f, 56.25f, 61.625f, 67.25f, 73.125f, 79.25f, 85.625f, 92.25f,
      99.25f, 106.375f, 113.875f, 121.5f, 127.0f};
  // clang-format on
};

/// -log2 Phi(-|z|) = base[j] + c0[j] + t (c1[j] + t (c2[j] + t c3[j])) to 2^-20, where v = 1 + scale w, j = the
/// exponent and two bits of v, and v = (the lower end of interval j) + t. Entries that no v reaches are 0.
struct LogMidTable {
  static constexpr double scale = 1.004;
  static constexpr double end = 11.3;  ///< in w; z = -13.3
  static constexpr int shift = 20;
  static constexpr std::uint32_t mask = 0xfff00000u;
  // clang-format off
  static constexpr float c0[32] = {
      -0.00905668549f, -0.00331260706f, -0.0175145995f, 0.0136522977f, 0.0299981944f, -0.0290741436f, 0.0255100001f,
      0.00756095489f, -0.0193240363f, 0.0286474973f, -0.01223421f, -0.0126860775f, 0.0305027645f, -0.00521164294f,
      0.00708391145f, 0.00640440825f, -0.00603207015f, 0.000111404501f, -0.0309293196f, 0.0301145148f, 0.0f, 0.0f,
      0.0f, 0.0f, 0.0f, -0.00872972608f, 0.00322291488f, -0.0257650707f, 0.0301098321f, -0.0159190018f, 0.02431578f,
      0.0264200792f};
  static constexpr float c1[32] = {
      2.81718922f, 3.23099375f, 3.65721679f, 4.09361792f, 4.53838539f, 4.99005985f, 5.4474659f, 5.90965557f,
      6.37582779f, 7.31791592f, 8.26992512f, 9.22929668f, 10.1942482f, 11.1635103f, 12.1361609f, 13.111515f,
      14.0890379f, 16.0492039f, 18.0143929f, 19.9831924f, 0.0f, 0.0f, 0.0f, 0.0f, 1.34991717f, 1.51166594f,
      1.68073308f, 1.85651851f, 2.03844643f, 2.22597122f, 2.41858292f, 2.61580873f};
  static constexpr float c2[32] = {
      0.814021587f, 0.841320574f, 0.86367166f, 0.882010758f, 0.897118568f, 0.90962559f, 0.92003864f, 0.92875731f,
      0.936389327f, 0.947818995f, 0.956222296f, 0.962538242f, 0.967380464f, 0.971160412f, 0.974153817f,
      0.976564527f, 0.978615165f, 0.981554031f, 0.983637571f, 0.985164464f, 0.0f, 0.0f, 0.0f, 0.0f, 0.631783485f,
      0.662289977f, 0.690336764f, 0.716026664f, 0.739468396f, 0.760799348f, 0.78015995f, 0.797705054f};
  static constexpr float c3[32] = {
      0.0365099162f, 0.0298923794f, 0.0245279316f, 0.0202092975f, 0.0167311765f, 0.0139263226f, 0.011652953f,
      0.00980644487f, 0.00768398959f, 0.0056457147f, 0.00424072193f, 0.00324800634f, 0.00253132661f, 0.0020020653f,
      0.00161308597f, 0.00131376297f, 0.000990674831f, 0.000701537065f, 0.000513522362f, 0.000386297645f, 0.0f,
      0.0f, 0.0f, 0.0f, 0.081415616f, 0.0748125538f, 0.0685411021f, 0.0625536516f, 0.0569193438f, 0.0516555943f,
      0.0468150787f, 0.0423914678f};
  static constexpr float base[32] = {
      3.0625f, 3.8125f, 4.6875f, 5.625f, 6.6875f, 7.9375f, 9.1875f, 10.625f, 12.1875f, 15.5625f, 19.5f, 23.875f,
      28.6875f, 34.0625f, 39.875f, 46.1875f, 53.0f, 68.0625f, 85.125f, 104.0625f, 127.0f, 127.0f, 127.0f, 127.0f,
      1.0f, 1.1875f, 1.375f, 1.625f, 1.8125f, 2.125f, 2.375f, 2.6875f};
  // clang-format on
};

/// 2^-r on |r| <= 1/64, with the table of 2^-(j/32): relative error 2^-24.2.
struct ExpTable32 {
  static constexpr std::uint32_t bits[32] = {
      0x3f800000u, 0x3f7e83b3u, 0x3f7d257du, 0x3f7be4bau, 0x3f7ac0c7u, 0x3f79b907u, 0x3f78ccdfu, 0x3f77fbb8u,
      0x3f7744fdu, 0x3f76a81eu, 0x3f76248cu, 0x3f75b9beu, 0x3f75672au, 0x3f752c4du, 0x3f7508a4u, 0x3f74fbafu,
      0x3f7504f3u, 0x3f7523f6u, 0x3f75583fu, 0x3f75a15bu, 0x3f75fed7u, 0x3f767043u, 0x3f76f532u, 0x3f778d3au,
      0x3f7837f0u, 0x3f78f4f0u, 0x3f79c3d3u, 0x3f7aa43au, 0x3f7b95c2u, 0x3f7c980fu, 0x3f7daac3u, 0x3f7ecd87u};
  static constexpr int shift = 18;
  static constexpr float round = 393216.0f;  ///< 1.5 * 2^18
  static constexpr float p[3] = {0.240226805f, -0.693157315f, 1.0f};
};

// --- Constants of one lambda ----------------------------------------------------------------------------------------
/// What a formula makes of any lambda: gate.scale = lambda * scale, gate.limit = end / lambda, for lambda moved into
/// [smallest, largest].
struct GateRecipe {
  double scale, scale_low;
  double end;
  double smallest, largest;
};

template <class T>
LAMBDA_GELU_HD constexpr GateRecipe gate_recipe(Formula formula) {
  const double largest = sizeof(T) == 4 ? 1e37 : 1e300;
  const double smallest = sizeof(T) == 4 ? 2e-38 : 1e-300;
  const auto recipe = [=](double unit, double end_in_w) {
    // For unit = 1 the low part is exact; otherwise the rounding of the quotient is 2^-53, far below that of float.
    return GateRecipe{kSqrtHalfLog2e / unit, kSqrtHalfLog2eLow / unit, end_in_w / kSqrtHalfLog2e, smallest, largest};
  };
  switch (formula) {
    case Formula::kLog:
      return recipe(LogTable::step, LogTable::end * LogTable::step);
    case Formula::kLogMid:
      return recipe(1 / LogMidTable::scale, LogMidTable::end);
    case Formula::kDouble:
      return recipe(1, 31.9);
    case Formula::kPolynomial:
      return recipe(1, 11.2583);  // 2^-(w^2) = 1.19 * 2^-127, which a product that flushes subnormals makes 0
    case Formula::kHardwareExp:
      return recipe(1, 11.40);  // 2^-130, which the instruction flushes to 0
    default:
      return recipe(1, 10.95);
  }
}

/// The constants for lambda. Any lambda: NaN stays NaN, and a lambda outside the range of T's normal numbers is moved
/// into it, where the gate already is that of ReLU or 1/2.
template <class T>
LAMBDA_GELU_HD Gate<T> make_gate(const GateRecipe& recipe, double lambda) {
  if (lambda > recipe.largest) lambda = recipe.largest;
  if (lambda < recipe.smallest) lambda = recipe.smallest;
  const double k = lambda * recipe.scale;
  const double k_low = std::fma(lambda, recipe.scale_low, std::fma(lambda, recipe.scale, -k));
  const double limit = divide(recipe.end, lambda);
  constexpr double largest_limit = sizeof(T) == 4 ? static_cast<double>(FLT_MAX) : DBL_MAX;

  Gate<T> gate;
  gate.scale_hi = static_cast<T>(k);
  gate.scale_lo = static_cast<T>((k - static_cast<double>(gate.scale_hi)) + k_low);
  gate.limit = static_cast<T>(limit < largest_limit ? limit : largest_limit);
  gate.slope = static_cast<T>(lambda * kInvSqrt2Pi);
  return gate;
}

/// Backward kernels add up g 2^-(w^2) w |x|; divided by the scale of w it is g x^2 phi(z). Not w^2, which would leave
/// the range of float for lambda far from 1.
LAMBDA_GELU_HD double unscaled_sum_to_gradient(double sum, double scale) {
  return divide(sum * kInvSqrt2Pi, scale);
}
template <class T>
LAMBDA_GELU_HD double unscaled_sum_to_gradient(double sum, const Gate<T>& gate) {
  return unscaled_sum_to_gradient(sum, static_cast<double>(gate.scale_hi));
}

}  // namespace lambda_gelu::kernels
