//! What the tests of this target share.

use std::time::Duration;

use anyhow::{Result, ensure};
use kvcluster_suite::lab::{self, Lab};
use kvcluster_suite::{check, election};

/// Longest time until a store whose faults are taken back is whole again: a restarted Kafka takes up to 12 s.
const SETTLE_LIMIT: Duration = Duration::from_secs(40);

/// The lab with a store that is whole.
pub(crate) fn whole_store() -> Result<Lab> {
    let lab = Lab::local()?;
    ensure!(
        lab.brokers()? >= 3,
        "the lab runs one broker: run `cargo lab down`, then `cargo lab local --brokers 3`"
    );
    election::settled(&lab, None, SETTLE_LIMIT)?;
    Ok(lab)
}

/// Ends the nodes, empties their schemas, and starts them with a mistake or without: they rebuild their state from the log.
pub(crate) fn from_the_log(mistake: Option<&str>) -> Result<()> {
    let lab = Lab::local()?;
    for node in &lab.nodes {
        if node.pid.is_some() {
            lab::kill(&format!("node-{}", node.id))?;
        }
        check::empty_schema(&lab, node.id)?;
    }
    lab::restart_nodes(mistake)
}
