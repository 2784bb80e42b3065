//! The nodes trim the log by themselves; who loses its schema afterwards takes the state of another replica.

use std::collections::BTreeMap;

use super::fixture::Cluster;
use super::{PATIENCE, SLOTS, alone};

/// Records of each slot that stay.
const KEPT: i64 = 20;
const KEYS: usize = 200;

/// A cluster that keeps little of its log, with a value for each key, written several times over.
fn trimmed(rounds: usize) -> (Cluster, BTreeMap<String, String>) {
    let kept = format!("--log-keep-records={KEPT}");
    let cluster = Cluster::start_with(3, SLOTS, &[&kept]);
    cluster.wait_until_led(PATIENCE);
    for round in 0..rounds {
        for number in 0..KEYS {
            cluster.put_surely(number % 3, &format!("k{number}"), &format!("v{round}"));
        }
    }
    cluster.wait_until(PATIENCE, || {
        (0..SLOTS).all(|slot| cluster.log_start(slot) > KEPT)
    });
    let last = format!("v{}", rounds - 1);
    let expected = (0..KEYS).map(|number| (format!("k{number}"), last.clone()));
    (cluster, expected.collect())
}

/// Records of a slot that are in the log though this replica has them durably.
fn kept_of(cluster: &Cluster, node: usize, slot: u32) -> i64 {
    let status = cluster.status(node).expect("the node answers");
    let found = status.slots.iter().find(|found| found.slot.0 == slot);
    found.expect("it has every slot").durable - cluster.log_start(slot)
}

#[test]
fn what_all_replicas_have_goes_and_the_rest_stays() {
    let _turn = alone();
    let (mut cluster, expected) = trimmed(4);
    for slot in 0..SLOTS {
        for node in 0..3 {
            assert!(kept_of(&cluster, node, slot) > KEPT, "slot {slot}");
        }
    }
    // A replica that is away keeps what it has not got.
    cluster.wait_until(PATIENCE, || cluster.agree());
    assert!(cluster.terminate(2), "a stop that was asked for ends well");
    for number in 0..KEYS {
        cluster.put_surely(number % 2, &format!("k{number}"), "later");
    }
    cluster.restart(2);
    cluster.wait_until(PATIENCE, || cluster.agree());
    let pairs = cluster.scan(2);
    assert_eq!(pairs.len(), expected.len());
    assert!(pairs.values().all(|value| value == "later"));
    assert_eq!(cluster.restored_rows(2), 0, "by the log alone");
    cluster.stop_all();
}

#[test]
fn a_node_that_lost_its_schema_takes_the_state_of_another() {
    let _turn = alone();
    let (mut cluster, expected) = trimmed(3);
    cluster.kill(2);
    cluster.lose_schema(2);
    cluster.restart(2);
    cluster.wait_until(PATIENCE, || cluster.agree());
    assert_eq!(cluster.restored_rows(2), expected.len() as u64);
    // It is a replica like the others again: it leads, and what it stores is the same.
    cluster.wait_until(PATIENCE, || cluster.leads_preferred(2));
    assert_eq!(cluster.scan(2), expected);
    cluster.wait_until(PATIENCE, || cluster.pairs(2) == cluster.pairs(0));
    cluster.stop_all();
}

#[test]
fn a_node_without_state_prefers_a_snapshot_to_a_long_log() {
    let _turn = alone();
    let many = "--snapshot-from-records=100";
    let mut cluster = Cluster::start_with(3, SLOTS, &[many]);
    cluster.wait_until_led(PATIENCE);
    // A long log in one slot, a short one in the others.
    for number in 0..300 {
        cluster.put_surely(0, "often", &number.to_string());
        if number % 20 == 0 {
            cluster.put_surely(0, &format!("seldom{number}"), "x");
        }
    }
    cluster.wait_until(PATIENCE, || cluster.agree() && cluster.is_all_durable(0));
    cluster.kill(2);
    cluster.lose_schema(2);
    cluster.restart(2);
    cluster.wait_until(PATIENCE, || cluster.agree());
    let restored = cluster.restored_rows(2);
    assert!(
        (1..10).contains(&restored),
        "{restored} rows: only the slot that was written often"
    );
    cluster.wait_until(PATIENCE, || cluster.pairs(2) == cluster.pairs(0));
    // Where nobody can give one, the log does.
    for node in 0..3 {
        cluster.kill(node);
        cluster.lose_schema(node);
    }
    for node in 0..3 {
        cluster.restart(node);
    }
    cluster.wait_until(PATIENCE, || cluster.agree());
    assert_eq!(
        cluster.scan(1).get("often").map(String::as_str),
        Some("299")
    );
    cluster.stop_all();
}
