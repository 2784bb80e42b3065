//! What somebody else does to the log topic: a replica passes over it, takes another one's state, or stands still and says
//! why. It never skips, and never begins anew by itself.

use std::time::Duration;

use kvcluster_crds::NodeId;
use kvcluster_crds::slot::slot_of_key;

use super::fixture::{Cluster, Outcome};
use super::{PATIENCE, SLOTS, alone};

/// Keys that are written before the mishap, over all slots.
const KEYS: usize = 64;
/// The slot that the mishap concerns, and another one.
const HIT: u32 = 3;
const OTHER: u32 = 4;

/// A cluster with a leader and some keys in each slot.
fn begun() -> Cluster {
    let cluster = Cluster::start(3, SLOTS);
    cluster.wait_until_led(PATIENCE);
    for number in 0..KEYS {
        cluster.put_surely(number % cluster.nodes(), &format!("k{number}"), "before");
    }
    cluster
}

/// Some key of a slot.
fn key_of(slot: u32) -> String {
    let mut keys = (0..).map(|number| format!("key{number}"));
    keys.find(|key| slot_of_key(key.as_bytes(), SLOTS).0 == slot)
        .expect("every slot has keys")
}

/// Waits until a slot is frozen on a node; where it stands, and why.
fn frozen(cluster: &Cluster, node: usize, slot: u32) -> (i64, String) {
    let look = || {
        let status = cluster.status(node)?;
        let slot = status.slots.iter().find(|found| found.slot.0 == slot)?;
        Some((slot.applied, slot.frozen.clone()?))
    };
    cluster.wait_until(PATIENCE, || look().is_some());
    look().expect("it stays frozen")
}

#[test]
fn a_damaged_record_stops_every_replica_at_its_place_and_no_other_slot() {
    let _turn = alone();
    let mut cluster = begun();
    // Ours by its first bytes, and not readable.
    cluster.append(HIT, b"KVLR\x01 this is no record of ours");
    let stands: Vec<_> = (0..3).map(|node| frozen(&cluster, node, HIT)).collect();
    let (place, reason) = &stands[0];
    assert!(reason.contains(&format!("record {place}")), "{reason}");
    assert!(
        stands.iter().all(|stand| stand == &stands[0]),
        "each at the same place, for the same reason: {stands:?}"
    );
    assert_eq!(cluster.put(0, &key_of(HIT), "after"), Outcome::Nothing);
    cluster.put_surely(0, &key_of(OTHER), "after");
    // A restart helps as little.
    cluster.kill(1);
    cluster.restart(1);
    assert_eq!(&frozen(&cluster, 1, HIT).0, place);
    cluster.stop_all();
}

#[test]
fn a_record_of_some_other_program_is_passed_over_and_counted() {
    let _turn = alone();
    let mut cluster = begun();
    for number in 0..10 {
        cluster.append(HIT, format!("a stray line {number}").as_bytes());
        cluster.put_surely(number % 3, &key_of(HIT), &format!("after{number}"));
    }
    cluster.wait_until(PATIENCE, || cluster.agree());
    for node in 0..3 {
        assert_eq!(
            cluster.scan(node).get(&key_of(HIT)).map(String::as_str),
            Some("after9")
        );
    }
    let totals = &cluster.decode_log()["totals"];
    assert_eq!(totals["foreign"], 10);
    cluster.stop_all();
}

#[test]
fn a_replica_whose_next_record_was_trimmed_takes_the_state_of_another() {
    let _turn = alone();
    let mut cluster = begun();
    // The last that node 2 learns is that node 1 leads.
    cluster.wait_until(PATIENCE, || cluster.leads_preferred(0));
    cluster.kill(0);
    cluster.wait_until(PATIENCE, || leader_seen_by(&cluster, 2) == Some(NodeId(1)));
    assert!(cluster.terminate(2), "a stop that was asked for ends well");
    cluster.restart(0);
    cluster.wait_until(PATIENCE, || cluster.leads_preferred(0));
    for number in 0..10 {
        cluster.put_surely(0, &key_of(HIT), &format!("meanwhile{number}"));
    }
    cluster.wait_until(PATIENCE, || cluster.is_durable(0, HIT));
    // The last record that node 0 has stays, and node 2 has less.
    let status = cluster.status(0).expect("node 0 answers");
    let slot = status.slots.iter().find(|slot| slot.slot.0 == HIT);
    cluster.trim(HIT, slot.expect("it has every slot").durable - 1);
    // Those who have it are away for now.
    for node in 0..2 {
        assert!(
            cluster.terminate(node),
            "a stop that was asked for ends well"
        );
    }
    cluster.restart(2);
    let (_, reason) = frozen(&cluster, 2, HIT);
    assert!(
        reason.contains("trimmed") && reason.contains("snapshot"),
        "{reason}"
    );
    cluster.restart(0);
    cluster.restart(1);
    cluster.wait_until(PATIENCE, || cluster.agree());
    cluster.put_surely(2, &key_of(HIT), "after");
    cluster.wait_until(PATIENCE, || cluster.agree() && cluster.is_durable(2, HIT));
    assert_eq!(
        cluster.pairs(0),
        cluster.pairs(2),
        "as if nothing had happened"
    );
    cluster.stop_all();
}

/// Who leads the slot, as a node sees it.
fn leader_seen_by(cluster: &Cluster, node: usize) -> Option<NodeId> {
    let status = cluster.status(node)?;
    let slot = status.slots.iter().find(|found| found.slot.0 == HIT)?;
    slot.leader
}

#[test]
fn a_log_that_was_made_anew_is_not_followed() {
    let _turn = alone();
    let mut cluster = begun();
    cluster.wait_until(PATIENCE, || cluster.agree());
    let before = cluster.scan(0);
    // PostgreSQL has everything, and remembers the log that it is from.
    for node in 0..3 {
        assert!(
            cluster.terminate(node),
            "a stop that was asked for ends well"
        );
    }
    cluster.make_log_anew();
    for node in 0..3 {
        cluster.restart(node);
    }
    for node in 0..3 {
        for slot in 0..SLOTS {
            let (_, reason) = frozen(&cluster, node, slot);
            assert!(reason.contains("emptied or replaced"), "{reason}");
        }
    }
    assert_eq!(cluster.put(0, "k0", "after"), Outcome::Nothing);
    assert!(!before.is_empty());
    for node in 0..3 {
        assert_eq!(
            cluster.rows(node),
            before.len(),
            "what was there stays there"
        );
    }
    cluster.stop_all();
}

#[test]
fn a_log_that_is_made_anew_under_running_nodes_is_not_followed_either() {
    let _turn = alone();
    let mut cluster = begun();
    cluster.wait_until(PATIENCE, || cluster.agree());
    cluster.make_log_anew();
    // Until the nodes have seen it, a write may be taken by the new topic; it is never acknowledged.
    let key = key_of(HIT);
    cluster.wait_until(Duration::from_mins(1), || {
        assert_ne!(
            cluster.put(0, &key, "after"),
            Outcome::Done,
            "acknowledged by another log"
        );
        (0..3).all(|node| {
            let status = cluster.status(node);
            status.is_some_and(|status| status.slots.iter().all(|slot| slot.frozen.is_some()))
        })
    });
    cluster.stop_all();
}
