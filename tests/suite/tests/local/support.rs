//! What the tests of this target share.

use std::time::Duration;

use anyhow::Result;
use kvcluster_suite::check::{self, Rows};
use kvcluster_suite::election;
use kvcluster_suite::lab::Lab;

/// Longest time until a store whose parts all run is whole again: Kafka's restart after a crash takes 6 to 12 s.
pub(crate) const SETTLE_LIMIT: Duration = Duration::from_secs(90);

/// The lab with a store that is whole and empty.
pub(crate) fn empty_store() -> Result<Lab> {
    let lab = Lab::local()?;
    for node in lab.nodes.iter().filter(|node| node.pid.is_none()) {
        kvcluster_suite::lab::start(&format!("node-{}", node.id))?;
    }
    election::settled(&lab, None, SETTLE_LIMIT)?;
    check::empty(lab.service()?)?;
    Ok(lab)
}

/// Every node gives exactly `expected` by `/scan`, and every node's schema comes to hold exactly that.
pub(crate) fn expect_everywhere(lab: &Lab, expected: &Rows) -> Result<()> {
    for url in lab.urls()? {
        check::expect_same(&check::scan(&url)?, expected)?;
    }
    check::expect_schemas(lab, expected)
}
