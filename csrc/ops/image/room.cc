#include "ops/image/image.h"
#include "ops/rooms.h"

namespace headrace {

void register_image_ops(OpRegistry& registry) {
  register_resize(registry);
  register_sample(registry);
  register_boxes(registry);
  register_col2im(registry);
}

}  // namespace headrace
