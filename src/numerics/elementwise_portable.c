/* numerics/elementwise_portable.c: the elementwise kernels for any processor. See elementwise_generic.h. */
#define ELEMENTWISE mica_elementwise_portable
#include "numerics/elementwise_generic.h"
