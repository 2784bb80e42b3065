//! What the slots may rely on when they speak to the log.

mod appending;
mod cutting;
mod freezing;
mod reading;

use crate::broker::Broker;
use crate::table::Case;

pub(crate) type LogCase = Case<dyn Broker>;

/// All of them.
pub(crate) fn all() -> Vec<LogCase> {
    [
        appending::cases(),
        reading::cases(),
        freezing::cases(),
        cutting::cases(),
    ]
    .into_iter()
    .flatten()
    .collect()
}
