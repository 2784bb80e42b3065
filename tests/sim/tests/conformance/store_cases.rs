//! What the slots and the REST side may rely on when they speak to the store.

mod applying;
mod failing;
mod flushing;
mod leaving;
mod owning;
mod remembering;
mod scanning;

use crate::database::Database;
use crate::table::Case;

pub(crate) type StoreCase = Case<dyn Database>;

/// All of them.
pub(crate) fn all() -> Vec<StoreCase> {
    [
        applying::cases(),
        flushing::cases(),
        scanning::cases(),
        owning::cases(),
        failing::cases(),
        remembering::cases(),
        leaving::cases(),
    ]
    .into_iter()
    .flatten()
    .collect()
}
