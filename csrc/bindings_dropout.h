// From Python's keyword arguments to the struct of dropout, as in bindings_attention.h.
#pragma once

#include "bindings_attention.h"

namespace xlnet_fast {

inline DropoutParams dropout_params(const pybind11::dict& dict) {
  DropoutParams p;
  Fields take(dict);
  take("dtype", p.dtype), take("rows", p.rows), take("width", p.width);
  take("x", p.x), take("out", p.out);
  take("keep_scale", p.keep_scale), take("keep_from", p.keep_from), take("seed", p.seed);
  take.done();
  return p;
}

}  // namespace xlnet_fast
