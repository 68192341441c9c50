// Probabilities of rows of scores, and the gradients of the scores. A warp owns a row.
//
//   s[j]  = scale * (scores[j] + position_scores[j - pos_i + L] + [segments differ] c_i)
//   P[j]  = e^(s[j] - max) / sum, a hidden key's s being -1e30                           fp32
//   out   = P keep / (1 - p)
//   dP    = d_out keep / (1 - p)
//   dS    = scale P (dP - sum_j P dP) = d_scores[j] = d_position_scores[j - pos_i + L]
//   dc_i  = sum over the keys of another segment of dS
//
// A row of up to 1024 keys is read once and stays in registers. Longer ones are read a tile at a
// time in two sweeps: maximum and sums, each lane with a maximum of its own, then what is written.
// NaN in the score of a hidden key reaches nothing; in that of a key that is seen, all of the row.
#pragma once

#include <type_traits>

#include "masked_softmax.h"
#include "masked_softmax_row.cuh"

namespace xlnet_fast::cuda {

constexpr int kSoftmaxWarps = 4;  // of a block, each with a row of its own
constexpr int kSoftmaxThreads = kSoftmaxWarps * kWarpSize;

// Blocks of a processor at once, which bounds the registers of a thread so far that nothing spills.
template <class Element, int Pieces, bool Whole>
constexpr int kSoftmaxBlocks = SoftmaxTile<Element, Pieces>::kElements <= 8    ? 8
                               : !Whole                                        ? 4
                               : SoftmaxTile<Element, Pieces>::kElements <= 16 ? 5
                                                                               : 3;

XLNET_FAST_DEVICE float warp_sum(float x) {
#pragma unroll
  for (int mask = kWarpSize / 2; mask > 0; mask /= 2) x += shuffle_xor(x, mask);
  return x;
}
XLNET_FAST_DEVICE float warp_max(float x) {
#pragma unroll
  for (int mask = kWarpSize / 2; mask > 0; mask /= 2) x = maximum(x, shuffle_xor(x, mask));
  return x;
}

template <class Element, int Pieces>
XLNET_FAST_DEVICE void write_probabilities(const MaskedSoftmaxParams& p,
                                           const SoftmaxRow<Element>& row, uint32_t shared,
                                           SoftmaxTile<Element, Pieces>& tile, float total) {
  const uint32_t kept = row.kept_keys(tile);
  const float inverse = 1.0f / total, keep_scale = row.keep_scale();
#pragma unroll
  for (int e = 0; e < tile.kElements; ++e) {
    const float probability = tile.x[e] * inverse;
    tile.x[e] = (kept >> e & 1) != 0 ? probability * keep_scale : 0.0f;
  }
  row.stage(shared, tile);
  row.write(p.out, shared, tile);
}

template <class Element, int Pieces, bool Whole>
XLNET_FAST_KERNEL(kSoftmaxThreads, (kSoftmaxBlocks<Element, Pieces, Whole>))
masked_softmax_forward_kernel(XLNET_FAST_PARAMETER MaskedSoftmaxParams p) {
  using Tile = SoftmaxTile<Element, Pieces>;
  const Place here = place();
  const auto flat = static_cast<uint32_t>(block_index()) * kSoftmaxWarps + here.warp;
  if (flat >= p.batch * p.heads * p.rows) return;  // whole warps, and no barrier of the block
  const uint32_t shared = here.warp * Pieces * kWarpSize * kPieceBytes;
  const SoftmaxRow<Element> row(p, flat);
  const float factor = p.scale * kLog2E;
  const int keys = static_cast<int>(p.keys);
  Tile tile(here.lane);
  if constexpr (Whole) {
    row.read(tile);
    const float most = warp_max(tile.highest(factor));
    const float total = warp_sum(tile.exponentiate(factor, most));
    write_probabilities(p, row, shared, tile, total);
  } else {
    float own_most = kLowestExponent, total = 0.0f;
    for (; tile.first < keys; tile.first += Tile::kKeys) {
      row.read(tile);
      const float next = maximum(own_most, tile.highest(factor));
      total = total * exp2_approx(own_most - next) + tile.exponentiate(factor, next);
      own_most = next;
    }
    const float most = warp_max(own_most);
    total = warp_sum(total * exp2_approx(own_most - most));
    for (tile.first = 0; tile.first < keys; tile.first += Tile::kKeys) {
      row.read(tile);
      tile.exponentiate(factor, most);
      write_probabilities(p, row, shared, tile, total);
    }
  }
}

// Sum of P dP over a lane's keys, tile.x being P.
template <class Element, int Pieces>
XLNET_FAST_DEVICE float dot(const SoftmaxTile<Element, Pieces>& tile,
                            const UpstreamTile<Element, Pieces>& upstream) {
  constexpr int kWidth = kPiece<Element>;
  float sum = 0.0f;
#pragma unroll
  for (int v = 0; v < Pieces; ++v) {
    float d_probability[kWidth];
    upstream.decode(v, d_probability);
#pragma unroll
    for (int e = 0; e < kWidth; ++e) sum = fmaf(tile.x[v * kWidth + e], d_probability[e], sum);
  }
  return sum;
}

// Makes dS of tile.x, which is P times `total`, writes it, and returns a lane's part of dc.
template <class Element, int Pieces>
XLNET_FAST_DEVICE float write_gradients(const MaskedSoftmaxParams& p,
                                        const SoftmaxRow<Element>& row, uint32_t shared,
                                        SoftmaxTile<Element, Pieces>& tile,
                                        const UpstreamTile<Element, Pieces>& upstream, float total,
                                        float mean) {
  constexpr int kWidth = kPiece<Element>;
  const float inverse = 1.0f / total;
  float d_segment = 0.0f;
#pragma unroll
  for (int v = 0; v < Pieces; ++v) {
    float d_probability[kWidth];
    upstream.decode(v, d_probability);
#pragma unroll
    for (int e = 0; e < kWidth; ++e) {
      const int number = v * kWidth + e;
      const float gradient = tile.x[number] * inverse * (d_probability[e] - mean) * p.scale;
      d_segment += (tile.differ >> number & 1) != 0 ? gradient : 0.0f;
      tile.x[number] = gradient;
    }
  }
  row.stage(shared, tile);
  row.write(p.d_scores, shared, tile);
  if (p.d_position_scores.data != nullptr) row.write_positions(p.d_position_scores, shared, tile);
  return d_segment;
}

template <class Element, int Pieces, bool Whole>
XLNET_FAST_KERNEL(kSoftmaxThreads, (kSoftmaxBlocks<Element, Pieces, Whole>))
masked_softmax_backward_kernel(XLNET_FAST_PARAMETER MaskedSoftmaxParams p) {
  using Tile = SoftmaxTile<Element, Pieces>;
  const Place here = place();
  const auto flat = static_cast<uint32_t>(block_index()) * kSoftmaxWarps + here.warp;
  if (flat >= p.batch * p.heads * p.rows) return;
  const uint32_t shared = here.warp * Pieces * kWarpSize * kPieceBytes;
  const SoftmaxRow<Element> row(p, flat);
  const float factor = p.scale * kLog2E;
  const int keys = static_cast<int>(p.keys);
  Tile tile(here.lane);
  UpstreamTile<Element, Pieces> upstream;
  float d_segment = 0.0f;
  if constexpr (Whole) {
    row.read_upstream(upstream, tile);
    row.read(tile);
    const float most = warp_max(tile.highest(factor));
    const float total = warp_sum(tile.exponentiate(factor, most));
    const float mean = warp_sum(dot(tile, upstream)) / total;
    d_segment = write_gradients(p, row, shared, tile, upstream, total, mean);
  } else {
    float own_most = kLowestExponent, total = 0.0f, weighted = 0.0f;  // weighted: sum of P dP
    for (; tile.first < keys; tile.first += Tile::kKeys) {
      row.read_upstream(upstream, tile);
      row.read(tile);
      const float next = maximum(own_most, tile.highest(factor));
      const float shrink = exp2_approx(own_most - next);
      total = total * shrink + tile.exponentiate(factor, next);
      weighted = weighted * shrink + dot(tile, upstream);
      own_most = next;
    }
    const float most = warp_max(own_most), shrink = exp2_approx(own_most - most);
    total = warp_sum(total * shrink);
    const float mean = warp_sum(weighted * shrink) / total;
    for (tile.first = 0; tile.first < keys; tile.first += Tile::kKeys) {
      row.read_upstream(upstream, tile);
      row.read(tile);
      tile.exponentiate(factor, most);
      d_segment += write_gradients(p, row, shared, tile, upstream, total, mean);
    }
  }
  if (p.d_position_scores.data != nullptr) {
    row.clear_other_positions(p.d_position_scores, here.lane);
  }
  if (p.d_segment_scores.data == nullptr) return;
  d_segment = warp_sum(d_segment);
  if (here.lane == 0) row.write_segment_gradient(d_segment);
}

// --- launches
// -------------------------------------------------------------------------------------

// Calls launch_with(pieces of a lane, whether they hold a whole row) with constants for so many
// keys: 8, 16 or 32 elements a lane for up to 256, 512 or 1024 keys, else tiles of 512.
template <class Element, class Launch>
void choose_softmax_tile(int64_t keys, const Launch& launch_with) {
  constexpr int kWidth = kPiece<Element>;
  using Yes = std::true_type;
  if (keys <= 8 * kWarpSize) return launch_with(std::integral_constant<int, 8 / kWidth>{}, Yes{});
  if (keys <= 16 * kWarpSize) return launch_with(std::integral_constant<int, 16 / kWidth>{}, Yes{});
  if (keys <= 32 * kWarpSize) return launch_with(std::integral_constant<int, 32 / kWidth>{}, Yes{});
  launch_with(std::integral_constant<int, 16 / kWidth>{}, std::false_type{});
}

inline Grid softmax_grid(const MaskedSoftmaxParams& p, int pieces) {
  const int64_t rows = p.batch * p.heads * p.rows;
  return {(rows + kSoftmaxWarps - 1) / kSoftmaxWarps, kSoftmaxThreads,
          kSoftmaxThreads * pieces * kPieceBytes};
}

template <class Element>
void launch_masked_softmax_forward(const MaskedSoftmaxParams& params, Stream stream) {
  choose_softmax_tile<Element>(params.keys, [&](auto pieces, auto whole) {
    launch(masked_softmax_forward_kernel<Element, pieces(), whole()>,
           softmax_grid(params, pieces()), stream, params);
  });
}

template <class Element>
void launch_masked_softmax_backward(const MaskedSoftmaxParams& params, Stream stream) {
  choose_softmax_tile<Element>(params.keys, [&](auto pieces, auto whole) {
    launch(masked_softmax_backward_kernel<Element, pieces(), whole()>,
           softmax_grid(params, pieces()), stream, params);
  });
}

}  // namespace xlnet_fast::cuda
