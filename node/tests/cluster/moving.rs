//! Replicas that begin, move and end while their slots are written.

use std::sync::atomic::AtomicBool;
use std::thread;

use crate::fixture::Cluster;
use crate::{PATIENCE, StopsAtEnd, Written, alone, check, load};

/// Writers of a slot: enough that no fetch of its log comes back empty.
const WRITERS: usize = 12;

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
        cluster.kill(2);
        cluster.lose_schema(2);
        cluster.restart(2);
        let took = cluster.wait_until(PATIENCE, || cluster.is_caught_up(2));
        println!("a replica without state caught up after {took:?}");
    });
    let count: u64 = all.iter().map(|written| written.count).sum();
    println!("{count} writes meanwhile");
    assert!(count > 500, "{count} writes prove nothing");
    cluster.wait_until(PATIENCE, || cluster.agree());
    check(&cluster, 2, &all);
    cluster.stop_all();
}
