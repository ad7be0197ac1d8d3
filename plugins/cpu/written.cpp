// The features mode: y is the features.
#include "aggregation.h"
#include "element.h"

namespace pom::cpu {

void Aggregation::prepare_features() { add_phase(layout_.tasks(), &Aggregation::features); }

void Aggregation::features(int64_t task) {
  const Layout::Place place = layout_.place(task);
  Rows rows = rows_at(place, place.token, place.tokens);
  rows.y = element_at(tensors_.y, problem_.data_type,
                      (place.batch * problem_.tokens + place.token) * problem_.channels + place.channel);
  rows_functions_.features(rows);
}

}  // namespace pom::cpu
