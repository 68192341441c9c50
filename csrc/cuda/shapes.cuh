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

// --- blocks that own query rows ------------------------------------------------------------------

// `Sides` left sides of products a thread, parked where they would crowd out the tiles, and
// `Numbers` floats a row, which always are.
template <class Element_, int D_, int Keys_, int Sides, int Numbers>
struct RowShape {
  using Element = Element_;
  static constexpr int D = D_, Keys = Keys_;
  static constexpr int kWarps = 4, kThreads = kWarps * kWarpSize, kRows = 16 * kWarps;
  // A window, and what the next one adds; at least 32 rows a warp, which rows at positions of their
  // own need.
  static constexpr int kRing = greatest_of(kRows + 2 * Keys, 32 * kWarps);
  using Side = LeftSide<D, kThreads, (D > 64 || Sides > 2)>;

  // Offsets in shared memory: k and v of two steps, r, and the rest.
  static constexpr uint32_t kTileBytes = Tile<D>::kRowBytes * Keys;
  static constexpr uint32_t kTable = 4 * kTileBytes;  // the ring, or 32 rows a warp
  static constexpr uint32_t kStrips = kTable + Tile<D>::kRowBytes * kRing;
  static constexpr uint32_t kFacts = kStrips + kWarps * Strip<Keys>::kBytes;
  static constexpr uint32_t kSides = kFacts + 2 * KeyFacts<Keys>::kBytes;
  static constexpr uint32_t kNumbers = kSides + Sides * Side::kBytes;
  static constexpr uint32_t kScratch = kNumbers + 4 * Numbers * kRows;
  static constexpr uint32_t kSharedBytes = kScratch + 8 * kWarps;
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

// --- blocks that own columns: keys, or rows of r -------------------------------------------------

constexpr int kOwnerWarps = 4;  // each with 16 rows of a tile
constexpr int kOwnerThreads = kOwnerWarps * kWarpSize;
constexpr int kTileRows = 16 * kOwnerWarps;

// Columns of a block.
template <int D>
constexpr int kOwned = D <= 64 ? 64 : 32;
// Warps that share 16 columns.
template <int D>
constexpr int kShares = kOwnerWarps * 16 / kOwned<D>;

template <class Element_, int D_, bool kAhead_>
struct KeyShape {
  using Element = Element_;
  static constexpr int D = D_, kColumns = kOwned<D>;
  static constexpr bool kAhead = kAhead_;  // the next rows are copied while these are computed
  static constexpr int kStages = kAhead ? 2 : 1;
  static constexpr int kWindow = kColumns + kTileRows;
  // The window, and the rows that the next one adds where they are copied ahead; at least 32 rows a
  // warp, which rows at positions of their own need.
  static constexpr int kRing = greatest_of(kWindow + (kStages - 1) * kTileRows, 32 * kOwnerWarps);

  static constexpr uint32_t kTileBytes = Tile<D>::kRowBytes * kColumns;
  static constexpr uint32_t kRowsAt = 2 * kTileBytes;  // q and d_out of each stage
  static constexpr uint32_t kRowsBytes = Tile<D>::kRowBytes * kTileRows;
  static constexpr uint32_t kTable = kRowsAt + 2 * kStages * kRowsBytes;
  static constexpr uint32_t kStrips = kTable + Tile<D>::kRowBytes * kRing;
  static constexpr uint32_t kExchange = kStrips + kOwnerWarps * Strip<kColumns>::kBytes;
  static constexpr uint32_t kExchangeBytes = Tile<kColumns>::kRowBytes * kTileRows;
  static constexpr uint32_t kFacts = kExchange + 2 * kExchangeBytes;
  static constexpr uint32_t kSharedBytes = kFacts + KeyFacts<kColumns>::kBytes;
};

template <class Element, int D>
struct BackwardKvShapes {
  using Ample = KeyShape<Element, D, D <= 64>;
  using Scarce = std::conditional_t<D == 64, KeyShape<Element, D, false>, Ample>;
};

template <class Element_, int D_>
struct TableShape {
  using Element = Element_;
  static constexpr int D = D_, kColumns = kOwned<D>;
  static constexpr int kWindow = kColumns + kTileRows;  // keys that a tile of rows in order meets
  static constexpr int kStaged = greatest_of(kWindow, 32 * kOwnerWarps);

  static constexpr uint32_t kTileBytes = Tile<D>::kRowBytes * kColumns;
  static constexpr uint32_t kRowsBytes = Tile<D>::kRowBytes * kTileRows;
  static constexpr uint32_t kQ = kTileBytes;  // after the rows of r
  static constexpr uint32_t kDOut = kQ + kRowsBytes;
  static constexpr uint32_t kKeys = kDOut + kRowsBytes;  // a window, or 32 rows a warp
  static constexpr uint32_t kValues = kKeys + Tile<D>::kRowBytes * kStaged;
  static constexpr uint32_t kStrips = kValues + Tile<D>::kRowBytes * kStaged;
  static constexpr uint32_t kExchange = kStrips + kOwnerWarps * Strip<kColumns>::kBytes;
  static constexpr uint32_t kFacts = kExchange + Tile<kColumns>::kRowBytes * kTileRows;
  static constexpr uint32_t kSharedBytes = kFacts + KeyFacts<kWindow>::kBytes;
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
