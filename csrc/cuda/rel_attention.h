// The attention kernels for one shape of shapes.cuh; each is compiled by a file of instantiations/.
#pragma once

#include "../params.h"
#include "launch.h"

namespace xlnet_fast::cuda {

// Tiles hold rows of Shape::D elements, and any smaller head dim that is a multiple of 8.
template <class Shape>
void launch_rel_attention_forward(const AttentionCall& call, Stream stream);

// The same for the streams whose rows are at positions of their own, which that one leaves out.
template <class Shape>
void launch_rel_attention_forward_positions(const AttentionCall& call, Stream stream);

// dq of every stream, and delta, norm, c and d_c of their rows for the two others.
template <class Shape>
void launch_rel_attention_backward_q(const AttentionCall& call, Stream stream);

// dk, dv and the parts of d r_w_bias.
template <class Shape>
void launch_rel_attention_backward_kv(const AttentionCall& call, Stream stream);

// The parts of dr and of d r_r_bias.
template <class Shape>
void launch_rel_attention_backward_r(const AttentionCall& call, Stream stream);

}  // namespace xlnet_fast::cuda
