#!/bin/bash
# Plants one breach of each kind in an empty house; scripts/check-layers must name each, and nothing else.
check=$1/scripts/check-layers
house=$(mktemp -d) || exit 1
trap 'rm -rf "$house"' EXIT
mkdir -p "$house"/include/mica "$house"/src/{base,formats,numerics,model,operations,cli}
cd "$house" || exit 1
cat > src/base/good.c <<'C'
#include <stdio.h>
#include "base/good.h"
/* exit(1) and
 * printf(x) in a comment, */
void good(void) { snprintf("exit(1)", 0, "printf("); } // abort()
C
echo '#include "model/x.h"' > src/operations/good.c
echo '#include <mica/x.h>' > src/cli/good.c
"$check" "$house" > log || { echo "refuses a good house:"; cat log; exit 1; }

echo '#include "formats/x.h"' > src/base/up.c
echo '#include "formats/x.h"' > src/numerics/sibling.c
echo ' # include <operations/x.h>' > src/model/up.h
echo '#include "../base/x.h"' > src/model/dots.c
echo '#include "base/x.h"' > src/cli/inside.c
echo '#include "base/x.h"' > include/mica/leak.h
echo 'void f(void) { printf("x"); }' > src/base/prints.c
echo 'void f(void) { if (1) exit(1); }' > src/formats/exits.c
echo 'void f(void) { abort(); }' > src/operations/aborts.c
"$check" "$house" > log && { echo "accepts a bad house"; exit 1; }
for name in base/up.c numerics/sibling.c model/up.h model/dots.c cli/inside.c mica/leak.h base/prints.c formats/exits.c operations/aborts.c; do
    grep -q "$name" log || { echo "overlooks $name"; cat log; exit 1; }
done
grep -q '^9 breaches' log || { cat log; exit 1; }
