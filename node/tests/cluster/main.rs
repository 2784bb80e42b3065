//! Nodes as processes on a real Kafka and a real PostgreSQL, which the environment names: `KVCLUSTER_TEST_KAFKA`
//! (`host:port`) and `KVCLUSTER_TEST_POSTGRES_URL`. Each test makes topics, schemas and an assignment of its own.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "the numbers of a test are small"
)]

mod bounded;
mod fixture;
mod mishaps;
mod moving;
mod retries;
mod trimming;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use fixture::{Cluster, Outcome};

const SLOTS: u32 = 8;
const PATIENCE: Duration = Duration::from_secs(30);

/// One cluster at a time: the figures mean something only without company.
fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tells the threads of a scope to stop, also when a check has failed: the scope waits for them.
struct StopsAtEnd<'a>(&'a AtomicBool);

impl Drop for StopsAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Writes through `node` until told to stop; keeps what was acknowledged, and what may have taken effect.
fn load(cluster: &Cluster, writer: usize, stop: &AtomicBool) -> Written {
    let mut written = Written::default();
    let mut number = 0_u64;
    while !stop.load(Ordering::SeqCst) {
        let key = format!("w{writer}-{}", number % 50);
        let value = number.to_string();
        let node = (writer + number as usize) % cluster.nodes();
        let begun = Instant::now();
        match cluster.put(node, &key, &value) {
            Outcome::Done => {
                written.certain.insert(key.clone(), value);
                written.possible.remove(&key);
                written.longest = written.longest.max(begun.elapsed());
                written.count += 1;
            }
            Outcome::Nothing => thread::sleep(Duration::from_millis(5)),
            Outcome::Unknown => written.possible.entry(key).or_default().push(value),
        }
        number += 1;
    }
    written
}

#[derive(Default)]
struct Written {
    certain: BTreeMap<String, String>,
    possible: BTreeMap<String, Vec<String>>,
    longest: Duration,
    count: u64,
}

fn check(cluster: &Cluster, node: usize, all: &[Written]) {
    let pairs = cluster.scan(node);
    for written in all {
        for (key, value) in &written.certain {
            let found = pairs.get(key);
            let possible = written.possible.get(key);
            let right = found == Some(value)
                || possible
                    .zip(found)
                    .is_some_and(|(all, found)| all.contains(found));
            assert!(
                right,
                "{key} is {found:?}, acknowledged was {value}, possible {possible:?}"
            );
        }
    }
}

#[test]
fn a_killed_leader_costs_no_write_and_comes_back() {
    let _turn = alone();
    let mut cluster = Cluster::start(3, SLOTS);
    let ready = cluster.wait_until_led(PATIENCE);
    let spread = cluster.wait_until(PATIENCE, || {
        (0..3).all(|node| cluster.leads_preferred(node))
    });
    println!("led after {ready:?}, as it should be {spread:?} later");
    let stop = AtomicBool::new(false);
    let outage = AtomicU64::new(0);
    let (all, restarted) = thread::scope(|scope| {
        let shared = &cluster;
        let _stops = StopsAtEnd(&stop);
        let writers: Vec<_> = (0..6)
            .map(|writer| {
                scope.spawn({
                    let stop = &stop;
                    move || load(shared, writer, stop)
                })
            })
            .collect();
        thread::sleep(Duration::from_secs(3));
        shared.kill(1);
        let killed = Instant::now();
        let led = shared.wait_until_led_without(1, PATIENCE);
        outage.store(
            u64::try_from(led.as_millis()).expect("short"),
            Ordering::SeqCst,
        );
        println!("all slots led again {led:?} after SIGKILL");
        thread::sleep(Duration::from_secs(2));
        shared.restart(1);
        let back = shared.wait_until(PATIENCE, || shared.leads_preferred(1));
        println!(
            "node 1 leads its slots again {back:?} after its restart, {:?} after its death",
            killed.elapsed()
        );
        thread::sleep(Duration::from_secs(1));
        stop.store(true, Ordering::SeqCst);
        let all: Vec<_> = writers
            .into_iter()
            .map(|writer| writer.join().expect("a writer"))
            .collect();
        (all, back)
    });
    assert!(restarted < PATIENCE);
    let count: u64 = all.iter().map(|written| written.count).sum();
    let longest = all.iter().map(|written| written.longest).max();
    println!("{count} writes acknowledged, the longest took {longest:?}");
    assert!(count > 500, "{count} writes prove nothing");
    for node in 0..3 {
        check(&cluster, node, &all);
    }
    cluster.wait_until(PATIENCE, || cluster.agree());
    let report = cluster.decode_log();
    let totals = &report["totals"];
    let number = |name: &str| totals[name].as_u64().expect("a number");
    assert!(number("puts") >= count, "{totals}");
    let all: u64 = ["valid", "ignored", "foreign", "empty"]
        .map(number)
        .iter()
        .sum();
    let ends = report["partitions"].as_array().expect("a list").iter();
    let between: i64 = ends
        .map(|p| p["end"].as_i64().expect("a number") - p["start"].as_i64().expect("a number"))
        .sum();
    assert_eq!(i64::try_from(all).expect("small"), between);
    println!("the log: {totals}");
    let outage = outage.load(Ordering::SeqCst);
    assert!(
        (200..3_000).contains(&outage),
        "{outage} ms without a leader"
    );
    cluster.stop_all();
}

#[test]
fn a_stop_gives_leaderships_away_and_loses_nothing() {
    let _turn = alone();
    let mut cluster = Cluster::start(3, SLOTS);
    cluster.wait_until_led(PATIENCE);
    for number in 0..200 {
        cluster.put_surely(number % 3, &format!("k{number}"), "before");
    }
    let begun = Instant::now();
    let well = cluster.terminate(2);
    println!("node 2 ended after {:?}", begun.elapsed());
    assert!(well, "a stop that was asked for ends well");
    let led = cluster.wait_until_led_without(2, PATIENCE);
    assert!(led < Duration::from_millis(500), "{led:?} after a stop");
    for number in 0..200 {
        cluster.put_surely(number % 2, &format!("k{number}"), "after");
    }
    cluster.restart(2);
    cluster.wait_until(PATIENCE, || cluster.agree());
    let pairs = cluster.scan(2);
    assert_eq!(pairs.len(), 200);
    assert!(pairs.values().all(|value| value == "after"));
    cluster.stop_all();
}
