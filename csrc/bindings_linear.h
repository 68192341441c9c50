// From Python's keyword arguments to the struct of linear, as in bindings_attention.h.
#pragma once

#include "bindings_attention.h"
#include "cpu/linear.h"

namespace xlnet_fast {

inline LinearParams linear_params(const pybind11::dict& dict) {
  LinearParams p;
  Fields take(dict);
  take("dtype", p.dtype), take("rows", p.rows), take("terms", p.terms);
  take("columns", p.columns), take("x", p.x), take("weight", p.weight), take("bias", p.bias);
  take("residual", p.residual), take("out", p.out), take("x_row", p.x_row);
  take("x_term", p.x_term), take("weight_column", p.weight_column);
  take("weight_term", p.weight_term), take("residual_row", p.residual_row);
  take("out_row", p.out_row), take("gelu", p.gelu);
  take.done();
  return p;
}

}  // namespace xlnet_fast
