#include "simd/avx2.h"
// The instruction set comes first: the templates below are written in terms of it.
#include "linear/products.h"

namespace ridgeline {
constinit const Products kAvx2Products = kProducts;
}
