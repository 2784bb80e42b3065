//! When a node removes what it has of a slot that is not assigned to it any more. Pure.
//!
//! What is removed here must stand elsewhere for good: every voter of the slot has to say that it follows an assignment at
//! least as new, and that it has durably what is stored here. A move that is taken back within the grace time finds its rows.

use kvcluster_crds::{NodeId, NodeStatus, Offset, SlotId};

/// Whether what is stored of `slot` up to `stored` may be removed. `version`: of the assignment that names `voters` and not this
/// node. `reports`: what other nodes said just now.
pub fn may_remove(
    slot: SlotId,
    stored: Offset,
    version: u64,
    voters: &[NodeId],
    reports: &[NodeStatus],
) -> bool {
    let has_it = |voter: &NodeId| {
        let status = reports.iter().find(|status| status.node == *voter);
        status.is_some_and(|status| {
            let replica = status.slots.iter().find(|replica| replica.slot == slot);
            status.assignment_version >= Some(version)
                && replica
                    .is_some_and(|replica| replica.frozen.is_none() && replica.durable >= stored.0)
        })
    };
    !voters.is_empty() && voters.iter().all(has_it)
}

#[cfg(test)]
mod tests {
    use kvcluster_crds::{Epoch, Incarnation, LogId, SlotRole, SlotStatus};

    use super::*;

    const SLOT: SlotId = SlotId(4);

    fn report(node: u32, version: u64, durable: i64) -> NodeStatus {
        NodeStatus {
            node: NodeId(node),
            incarnation: Incarnation(1),
            cluster_uid: "uid".to_owned(),
            log_id: LogId(1),
            assignment_version: Some(version),
            kafka_connected: true,
            postgres_connected: true,
            problem: None,
            unflushed_bytes: 0,
            unflushed_bytes_max: 1,
            slots: vec![SlotStatus {
                slot: SLOT,
                role: SlotRole::Follower,
                leader: None,
                epoch: Epoch(1),
                applied: durable,
                flushed: durable,
                durable,
                caught_up: true,
                bytes: 0,
                records_valid: 0,
                records_ignored: 0,
                frozen: None,
            }],
        }
    }

    fn removes(reports: &[NodeStatus]) -> bool {
        may_remove(SLOT, Offset(10), 3, &[NodeId(1), NodeId(2)], reports)
    }

    #[test]
    fn every_voter_must_have_it_durably() {
        assert!(removes(&[report(1, 3, 10), report(2, 4, 11)]));
        assert!(!removes(&[report(1, 3, 10)]), "one says nothing");
        assert!(
            !removes(&[report(1, 3, 10), report(2, 3, 9)]),
            "a crash could take it back"
        );
        assert!(
            !removes(&[report(1, 3, 10), report(2, 2, 11)]),
            "it may not know yet that it is a voter"
        );
        let mut elsewhere = report(2, 3, 10);
        elsewhere.slots[0].slot = SlotId(5);
        assert!(!removes(&[report(1, 3, 10), elsewhere]));
        let mut frozen = report(2, 3, 10);
        frozen.slots[0].frozen = Some("another log".to_owned());
        assert!(!removes(&[report(1, 3, 10), frozen]));
        assert!(
            !may_remove(SLOT, Offset(0), 3, &[], &[]),
            "a slot without voters"
        );
    }
}
