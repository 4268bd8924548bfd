/* operations/route_prompts.h: the prompts that `mica route` uses when it is given none. */
#ifndef MICA_OPERATIONS_ROUTE_PROMPTS_H
#define MICA_OPERATIONS_ROUTE_PROMPTS_H

#define MICA_ROUTE_PROMPTS 256
extern const char *const mica_route_prompts[MICA_ROUTE_PROMPTS];

#endif
