//! Who leads which slot, as the nodes themselves report it.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kvcluster_crds::{NodeStatus, SlotRole};

use crate::lab::{self, Lab};
use crate::poll;

/// Slot → the node that leads it.
pub type Leaders = BTreeMap<u32, u32>;

/// The leaders among some reports; fails unless each slot has exactly one.
pub fn leaders_of(reports: &[NodeStatus]) -> Result<Leaders> {
    let mut leaders = Leaders::new();
    let mut slots = std::collections::BTreeSet::new();
    for report in reports {
        for slot in &report.slots {
            slots.insert(slot.slot.0);
            if slot.role == SlotRole::Leader {
                let before = leaders.insert(slot.slot.0, report.node.0);
                ensure!(before.is_none(), "slot {} has two leaders", slot.slot);
            }
        }
    }
    ensure!(!slots.is_empty(), "no node reports a slot");
    ensure!(
        leaders.len() == slots.len(),
        "{} of {} slots are led",
        leaders.len(),
        slots.len()
    );
    Ok(leaders)
}

/// Waits until each slot has one leader among the nodes but `without`, and all of these have caught up.
pub fn settled(lab: &Lab, without: Option<u32>, limit: Duration) -> Result<Leaders> {
    let what = "one leader for each slot, replicas that caught up, and their databases";
    poll::until(limit, what, || {
        let nodes = lab.nodes.iter().filter(|node| Some(node.id) != without);
        let reports = nodes.map(lab::Node::status).collect::<Result<Vec<_>>>()?;
        // Without its database a node leads and follows, and can read and scan only what is in memory.
        let away = reports.iter().find(|report| !report.postgres_connected);
        ensure!(
            away.is_none(),
            "node {} waits for PostgreSQL",
            away.map_or(0, |report| report.node.0)
        );
        settled_leaders(&reports).map(Some)
    })
}

/// The leaders among some reports; fails also while a replica is behind or frozen.
pub fn settled_leaders(reports: &[NodeStatus]) -> Result<Leaders> {
    for report in reports {
        // One that has just started knows of no slot.
        ensure!(
            !report.slots.is_empty(),
            "node {} has no slots yet",
            report.node
        );
        let behind = report
            .slots
            .iter()
            .find(|slot| !slot.caught_up || slot.frozen.is_some());
        ensure!(behind.is_none(), "node {}: {behind:?}", report.node);
    }
    leaders_of(reports)
}

/// The node that leads most slots.
pub fn busiest(leaders: &Leaders) -> u32 {
    let mut counts = BTreeMap::new();
    for node in leaders.values() {
        *counts.entry(*node).or_insert(0) += 1;
    }
    let busiest = counts.into_iter().max_by_key(|(_, count)| *count);
    busiest.expect("some slot is led").0
}

/// Some key of the first slot that a node leads.
pub fn key_led_by(prefix: &str, node: u32, leaders: &Leaders) -> Result<String> {
    let led = leaders.iter().find(|(_, leader)| **leader == node);
    let (slot, _) = led.with_context(|| format!("node {node} leads no slot"))?;
    Ok(key_of_slot(prefix, *slot, u32::try_from(leaders.len())?))
}

/// Some key of each slot.
pub fn keys_of_slots(prefix: &str, leaders: &Leaders) -> Result<Vec<String>> {
    let slots = u32::try_from(leaders.len())?;
    Ok((0..slots)
        .map(|slot| key_of_slot(prefix, slot, slots))
        .collect())
}

/// Some key of a slot.
pub fn key_of_slot(prefix: &str, slot: u32, slots: u32) -> String {
    (0..u64::MAX)
        .map(|number| format!("{prefix}-{number}"))
        .find(|key| kvcluster_crds::slot::slot_of_key(key.as_bytes(), slots).0 == slot)
        .expect("some number hashes into every slot")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_busiest_leads_most() {
        assert_eq!(busiest(&Leaders::from([(0, 2), (1, 1), (2, 2)])), 2);
    }

    #[test]
    fn a_key_is_found_in_every_slot() {
        for slot in 0..16 {
            let key = key_of_slot("k", slot, 16);
            assert_eq!(
                kvcluster_crds::slot::slot_of_key(key.as_bytes(), 16).0,
                slot
            );
        }
    }
}
