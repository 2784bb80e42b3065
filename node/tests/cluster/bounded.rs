//! Reads of bounded age at replicas, while the leader writes, and while it is dead.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::fixture::{Cluster, Outcome};
use crate::{PATIENCE, SLOTS, StopsAtEnd, alone};

/// What the readers ask for while the leader lives: many heartbeats, also on a busy machine.
const WITHIN_LONG: Duration = Duration::from_secs(2);
/// What they ask for when it is dead: several heartbeats, and less than an election.
const WITHIN: Duration = Duration::from_millis(400);
/// Reads while the leader lives.
const READS: usize = 600;
/// Shortest time between the end of what a killed leader vouched for and the next leader, milliseconds: an election begins when
/// nothing was heard for 600 ms, which is 200 ms after the newest stamp became too old.
const WAITS_MS: u64 = 100;
const KEY: &str = "counter";

/// Numbers that were acknowledged, in order, each with when.
type Acknowledged = Mutex<Vec<(Instant, u64)>>;

fn write(cluster: &Cluster, node: usize, acknowledged: &Acknowledged, stop: &AtomicBool) {
    let mut number = 0;
    while !stop.load(Ordering::SeqCst) {
        number += 1;
        if cluster.put(node, KEY, &number.to_string()) == Outcome::Done {
            let mut all = acknowledged.lock().expect("no panic");
            all.push((Instant::now(), number));
        }
    }
}

/// One read through `node`; fails when it misses what it has to show. Whether it was answered.
fn read(cluster: &Cluster, node: usize, within: Duration, acknowledged: &Acknowledged) -> bool {
    let asked = Instant::now();
    let headers = format!(
        "Kvcluster-Consistency: bounded\r\nKvcluster-Max-Staleness-Ms: {}\r\n",
        within.as_millis()
    );
    let Some(found) = cluster.get_with(node, KEY, &headers) else {
        return false;
    };
    let found: u64 = found.map_or(0, |text| text.parse().expect("a number"));
    let all = acknowledged.lock().expect("no panic");
    let old = all.partition_point(|(at, _)| *at + within < asked);
    let least = all[..old].last().map_or(0, |(_, number)| *number);
    assert!(
        found >= least,
        "read {found}, and {least} was older than {within:?}"
    );
    true
}

#[test]
fn reads_are_as_fresh_as_they_say_and_seldom_the_leaders_business() {
    let _turn = alone();
    let mut cluster = Cluster::start(3, SLOTS);
    cluster.wait_until_led(PATIENCE);
    cluster.wait_until(PATIENCE, || {
        (0..3).all(|node| cluster.leads_preferred(node))
    });
    let leader = (0..3).find(|node| cluster.leads(*node, KEY));
    let leader = leader.expect("somebody leads");
    let others = [(leader + 1) % 3, (leader + 2) % 3];
    let (acknowledged, stop) = (Acknowledged::default(), AtomicBool::new(false));
    let written = || acknowledged.lock().expect("no panic").len();
    thread::scope(|scope| {
        let (shared, acknowledged, stop) = (&cluster, &acknowledged, &stop);
        let _stops = StopsAtEnd(stop);
        scope.spawn(move || write(shared, others[0], acknowledged, stop));
        cluster.wait_until(PATIENCE, || written() > 50);
        let forwards = || cluster.forwards(others[1]);
        // Until it has heard its leader's first word, which comes with a heartbeat, a replica cannot know.
        cluster.wait_until(PATIENCE, || {
            let before = forwards();
            read(&cluster, others[1], WITHIN_LONG, acknowledged) && forwards() == before
        });
        let before = forwards();
        let answered = (0..READS).filter(|_| read(&cluster, others[1], WITHIN_LONG, acknowledged));
        assert_eq!(answered.count(), READS);
        let asked = forwards() - before;
        println!(
            "{READS} reads during {} writes: {asked} asked the leader",
            written()
        );
        assert!(
            asked < READS as u64 / 20,
            "{asked} of {READS} asked the leader"
        );
        // A dead leader says nothing: its replicas answer as long as the bound allows, and then wait for the next one.
        cluster.kill(leader);
        let before = written();
        let longest = AtomicU64::new(0);
        cluster.wait_until(PATIENCE, || {
            let begun = Instant::now();
            read(&cluster, others[1], WITHIN, acknowledged);
            longest.fetch_max(begun.elapsed().as_millis() as u64, Ordering::SeqCst);
            written() > before + 200
        });
        let longest = longest.into_inner();
        println!("without a leader a read waited {longest} ms");
        assert!(longest >= WAITS_MS, "what nobody vouched for was answered");
        stop.store(true, Ordering::SeqCst);
        cluster.restart(leader);
    });
    cluster.stop_all();
}
