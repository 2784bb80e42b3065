//! Replicas that begin, move and end while their slots are written.

use std::sync::atomic::AtomicBool;
use std::thread;

use kvcluster_crds::SlotRole;

use crate::fixture::Cluster;
use crate::{PATIENCE, SLOTS, StopsAtEnd, Written, alone, check, load};

/// Writers of a slot: enough that no fetch of its log comes back empty.
const WRITERS: usize = 12;

/// Records of a slot after which its writers are at work.
const STEADY: i64 = 1_000;

/// Runs `work` while writers write; what they wrote.
fn under_load(cluster: &Cluster, work: impl FnOnce()) -> Vec<Written> {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let stops = StopsAtEnd(&stop);
        let stop = &stop;
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| scope.spawn(move || load(cluster, writer, stop)))
            .collect();
        work();
        drop(stops);
        let joined = writers.into_iter();
        joined
            .map(|writer| writer.join().expect("a writer"))
            .collect()
    })
}

#[test]
fn a_replica_that_begins_anew_catches_up_while_its_slot_is_written() {
    let _turn = alone();
    let mut cluster = Cluster::start(3, 1);
    cluster.wait_until_led(PATIENCE);
    let all = under_load(&cluster, || {
        // Until the writers have found their pace.
        let applied =
            |slots: Vec<kvcluster_crds::SlotStatus>| slots.first().map(|slot| slot.applied);
        cluster.wait_until(PATIENCE, || {
            let status = cluster.status(0);
            status.and_then(|status| applied(status.slots)) > Some(STEADY)
        });
        cluster.kill(2);
        cluster.lose_schema(2);
        cluster.restart(2);
        let took = cluster.wait_until(PATIENCE, || cluster.is_caught_up(2));
        println!("a replica without state caught up after {took:?}");
    });
    let count: u64 = all.iter().map(|written| written.count).sum();
    println!("{count} writes meanwhile");
    assert!(
        count > STEADY.unsigned_abs() / 2,
        "{count} writes prove nothing"
    );
    cluster.wait_until(PATIENCE, || cluster.agree());
    check(&cluster, 2, &all);
    cluster.stop_all();
}

#[test]
fn replicas_move_to_other_nodes_while_their_slots_are_written() {
    let _turn = alone();
    let mut cluster = Cluster::start_with(4, SLOTS, &["--remove-after-seconds=1"]);
    cluster.wait_until_led(PATIENCE);
    let every = [0, 1, 2, 3];
    let all = under_load(&cluster, || {
        cluster.assign(&[0, 1, 2], &[]);
        cluster.wait_until(PATIENCE, || cluster.has_replicas(&[0, 1, 2]));
        let gone = cluster.wait_until(PATIENCE, || cluster.rows(3) == 0);
        println!("the rows of node 3 are gone after {gone:?}");
        cluster.assign(&[0, 1, 2], &[3]);
        let caught_up = cluster.wait_until(PATIENCE, || cluster.has_replicas(&every));
        println!("node 3 has caught up after {caught_up:?}");
        let learner = cluster.status(3).expect("node 3 answers").slots;
        assert!(
            learner.iter().all(|slot| slot.role == SlotRole::Follower),
            "{learner:?}"
        );
        cluster.assign(&[1, 2, 3], &[]);
        cluster.wait_until(PATIENCE, || cluster.has_replicas(&[1, 2, 3]));
        cluster.wait_until_led_without(0, PATIENCE);
        let gone = cluster.wait_until(PATIENCE, || cluster.rows(0) == 0);
        println!("the rows of node 0 are gone after {gone:?}");
        // Taken back within the same process: it begins anew.
        cluster.assign(&[0, 1, 2, 3], &[]);
        cluster.wait_until(PATIENCE, || cluster.has_replicas(&every));
    });
    let count: u64 = all.iter().map(|written| written.count).sum();
    let longest = all.iter().map(|written| written.longest).max();
    println!("{count} writes meanwhile, the longest took {longest:?}");
    assert!(count > 500, "{count} writes prove nothing");
    cluster.wait_until(PATIENCE, || cluster.agree());
    for node in every {
        check(&cluster, node, &all);
        cluster.wait_until(PATIENCE, || cluster.is_all_durable(node));
    }
    let pairs = cluster.pairs(0);
    assert!(every.iter().all(|node| cluster.pairs(*node) == pairs));
    cluster.stop_all();
}
