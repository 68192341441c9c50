// The tiles of the attention kernels: what lies where in a block's shared memory, and so how much
// of it a block needs.
//
// A kernel has two shapes. The scarce one is for GPUs whose blocks may not have what the ample one
// needs (99 KiB in compute capability 8.6, 8.9 and 12.x); they are one type where there is none of
// its own. rel_attention.cu chooses by what the device has, and tells Python what there is to
// choose from.
#pragma once

#include <type_traits>

#include "window.cuh"

namespace xlnet_fast::cuda {

// What a block may have on every GPU that the kernels are for, bytes.
constexpr int kSharedEverywhere = 99 * 1024;

// --- blocks of query rows ------------------------------------------------------------------------

// `Operands` A operands of products, which lie in shared memory where they would crowd out the
// tiles, and `RowScalars` floats a row, which always do.
template <class Element_, int D_, int Keys_, int Operands, int RowScalars>
struct RowShape {
  using Element = Element_;
  static constexpr int D = D_, Keys = Keys_;
  static constexpr int kWarps = 4, kThreads = kWarps * kWarpSize, kRows = 16 * kWarps;
  // A window, and what the next one adds; at least 32 rows a warp, which rows at positions of their
  // own need.
  static constexpr int kRing = max_of(kRows + 2 * Keys, 32 * kWarps);
  using Operand = OperandA<D, kThreads, (D > 64 || Operands > 2)>;

  // Offsets in shared memory: k and v of two steps, r, and the rest.
  static constexpr uint32_t kTileBytes = Tile<D>::kRowBytes * Keys;
  static constexpr uint32_t kTable = 4 * kTileBytes;  // the ring, or 32 rows a warp
  static constexpr uint32_t kStrips = kTable + Tile<D>::kRowBytes * kRing;
  static constexpr uint32_t kMetadata = kStrips + kWarps * Strip<Keys>::kBytes;
  static constexpr uint32_t kOperands = kMetadata + 2 * KeyMetadata<Keys>::kBytes;
  static constexpr uint32_t kRowScalars = kOperands + Operands * Operand::kBytes;
  static constexpr uint32_t kScratch = kRowScalars + 4 * RowScalars * kRows;
  static constexpr uint32_t kSharedBytes = kScratch + 8 * kWarps;

  // `step` counts tiles of keys from the first that the block computes: two of them have a place.
  XLNET_FAST_DEVICE static Tile<D> k(int step) {
    return {static_cast<uint32_t>(step % 2) * kTileBytes};
  }
  XLNET_FAST_DEVICE static Tile<D> v(int step) {
    return {static_cast<uint32_t>(2 + step % 2) * kTileBytes};
  }
  XLNET_FAST_DEVICE static KeyMetadata<Keys> metadata(int step) {
    return {kMetadata + static_cast<uint32_t>(step % 2 * KeyMetadata<Keys>::kBytes)};
  }
  XLNET_FAST_DEVICE static Tile<D> r() { return {kTable}; }
  // Where a step's window begins in the ring. What a step copies is a whole part of the ring.
  XLNET_FAST_DEVICE static int ring_row(int step) {
    static_assert(kRing % Keys == 0 && kRows % Keys == 0);
    return static_cast<int>(static_cast<uint32_t>(step * Keys) % kRing);
  }
  XLNET_FAST_DEVICE static Strip<Keys> strip(int warp) {
    return {kStrips + static_cast<uint32_t>(warp * Strip<Keys>::kBytes)};
  }
  XLNET_FAST_DEVICE static uint32_t row_scalar(int which, int row) {
    return kRowScalars + static_cast<uint32_t>(4 * (which * kRows + row));
  }
};

template <class Element, int D>
struct ForwardShapes {
  using Ample = RowShape<Element, D, D <= 64 ? 64 : 32, 2, 1>;
  using Scarce = std::conditional_t<D == 128, RowShape<Element, D, 16, 2, 1>, Ample>;
};

template <class Element, int D>
struct BackwardQShapes {
  using Ample = RowShape<Element, D, D <= 64 ? 64 : 32, 3, 3>;
  using Scarce = std::conditional_t<D == 64, RowShape<Element, D, 32, 3, 3>, Ample>;
};

// --- blocks of columns: keys, or rows of r -------------------------------------------------------

constexpr int kColumnWarps = 4;  // each with 16 rows of a tile
constexpr int kColumnThreads = kColumnWarps * kWarpSize;
constexpr int kTileRows = 16 * kColumnWarps;

// Columns of a block.
template <int D>
constexpr int kBlockColumns = D <= 64 ? 64 : 32;
// Warps that share 16 columns.
template <int D>
constexpr int kShares = kColumnWarps * 16 / kBlockColumns<D>;

template <class Element_, int D_, bool kAhead_>
struct KeyShape {
  using Element = Element_;
  static constexpr int D = D_, kColumns = kBlockColumns<D>;
  static constexpr bool kAhead = kAhead_;  // the next rows are copied while these are computed
  static constexpr int kStages = kAhead ? 2 : 1;
  static constexpr int kWindow = kColumns + kTileRows;
  // The window, and the rows that the next one adds where they are copied ahead; at least 32 rows a
  // warp, which rows at positions of their own need.
  static constexpr int kRing = max_of(kWindow + (kStages - 1) * kTileRows, 32 * kColumnWarps);

  static constexpr uint32_t kTileBytes = Tile<D>::kRowBytes * kColumns;
  static constexpr uint32_t kRowsAt = 2 * kTileBytes;  // q and d_out of each stage
  static constexpr uint32_t kRowsBytes = Tile<D>::kRowBytes * kTileRows;
  static constexpr uint32_t kTable = kRowsAt + 2 * kStages * kRowsBytes;
  static constexpr uint32_t kStrips = kTable + Tile<D>::kRowBytes * kRing;
  static constexpr uint32_t kExchange = kStrips + kColumnWarps * Strip<kColumns>::kBytes;
  static constexpr uint32_t kExchangeBytes = Tile<kColumns>::kRowBytes * kTileRows;
  static constexpr uint32_t kMetadata = kExchange + 2 * kExchangeBytes;
  static constexpr uint32_t kSharedBytes = kMetadata + KeyMetadata<kColumns>::kBytes;
};

template <class Element, int D>
struct BackwardKvShapes {
  using Ample = KeyShape<Element, D, D <= 64>;
  using Scarce = std::conditional_t<D == 64, KeyShape<Element, D, false>, Ample>;
};

template <class Element_, int D_>
struct TableShape {
  using Element = Element_;
  static constexpr int D = D_, kColumns = kBlockColumns<D>;
  static constexpr int kWindow = kColumns + kTileRows;  // keys that a tile of rows in order meets
  static constexpr int kStaged = max_of(kWindow, 32 * kColumnWarps);

  static constexpr uint32_t kTileBytes = Tile<D>::kRowBytes * kColumns;
  static constexpr uint32_t kRowsBytes = Tile<D>::kRowBytes * kTileRows;
  static constexpr uint32_t kQ = kTileBytes;  // after the rows of r
  static constexpr uint32_t kDOut = kQ + kRowsBytes;
  static constexpr uint32_t kKeys = kDOut + kRowsBytes;  // a window, or 32 rows a warp
  static constexpr uint32_t kValues = kKeys + Tile<D>::kRowBytes * kStaged;
  static constexpr uint32_t kStrips = kValues + Tile<D>::kRowBytes * kStaged;
  static constexpr uint32_t kExchange = kStrips + kColumnWarps * Strip<kColumns>::kBytes;
  static constexpr uint32_t kMetadata = kExchange + Tile<kColumns>::kRowBytes * kTileRows;
  static constexpr uint32_t kSharedBytes = kMetadata + KeyMetadata<kWindow>::kBytes;
};

template <class Element, int D>
struct BackwardRShapes {
  using Ample = TableShape<Element, D>;
  using Scarce = Ample;
};

// Head dims up to 64, those of XLNet, run everywhere, and larger ones forward. What their backward
// pass lacks is in docs/measured.md.
template <class Shapes>
constexpr bool kRunsEverywhere = Shapes::Scarce::kSharedBytes <= kSharedEverywhere;
static_assert(kRunsEverywhere<ForwardShapes<BFloat16, 64>> &&
              kRunsEverywhere<BackwardQShapes<BFloat16, 64>> &&
              kRunsEverywhere<BackwardKvShapes<BFloat16, 64>> &&
              kRunsEverywhere<BackwardRShapes<BFloat16, 64>> &&
              kRunsEverywhere<ForwardShapes<BFloat16, 128>>);

}  // namespace xlnet_fast::cuda
