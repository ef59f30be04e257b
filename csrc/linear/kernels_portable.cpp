#include "simd/portable.h"
// The instruction set comes first: the templates below are written in terms of it.
#include "linear/products.h"

namespace ridgeline {
constinit const Products kPortableProducts = kProducts;
}
