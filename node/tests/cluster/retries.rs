//! Clients that send their writes again, through another node, until they are told that they are done, while nodes are killed.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use crate::fixture::{Cluster, Outcome};
use crate::{PATIENCE, SLOTS, StopsAtEnd, alone};

const WRITERS: usize = 6;
/// Kills of a node, each of another one than the last.
const KILLS: u64 = 4;
/// Writes before each kill, at least.
const BETWEEN: u64 = 200;

#[derive(Default)]
struct Sent {
    /// Value → how many attempts it took. Each value is written once.
    attempts: BTreeMap<String, u32>,
    unknown: u32,
}

fn write(cluster: &Cluster, writer: usize, done: &AtomicU64, stop: &AtomicBool) -> Sent {
    let mut sent = Sent::default();
    let mut number = 0;
    while !stop.load(Ordering::SeqCst) {
        let value = format!("{writer}-{number}");
        let key = format!("w{writer}-{}", number % 20);
        let mut attempts = 0;
        let begun = Instant::now();
        loop {
            assert!(begun.elapsed() < PATIENCE, "{value} is never done");
            let node = (writer + number + attempts as usize) % cluster.nodes();
            attempts += 1;
            match cluster.put_named(node, &key, &value, &value) {
                Outcome::Done => break,
                Outcome::Nothing => thread::yield_now(),
                Outcome::Unknown => sent.unknown += 1,
            }
        }
        // An answer that the client never got, as it were.
        if number.is_multiple_of(5) {
            let node = (writer + number + 1) % cluster.nodes();
            attempts += u32::from(cluster.put_named(node, &key, &value, &value) == Outcome::Done);
        }
        sent.attempts.insert(value, attempts);
        done.fetch_add(1, Ordering::SeqCst);
        number += 1;
    }
    sent
}

#[test]
fn a_write_that_is_sent_again_takes_effect_once() {
    let _turn = alone();
    let mut cluster = Cluster::start(3, SLOTS);
    cluster.wait_until_led(PATIENCE);
    let (done, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let all = thread::scope(|scope| {
        let (shared, done, stop) = (&cluster, &done, &stop);
        let stops = StopsAtEnd(stop);
        let start = |writer| scope.spawn(move || write(shared, writer, done, stop));
        let writers: Vec<_> = (0..WRITERS).map(start).collect();
        for kill in 0..KILLS {
            let victim = kill as usize % cluster.nodes();
            let enough = done.load(Ordering::SeqCst) + BETWEEN;
            cluster.wait_until(PATIENCE, || done.load(Ordering::SeqCst) >= enough);
            cluster.kill(victim);
            cluster.wait_until_led_without(victim, PATIENCE);
            cluster.restart(victim);
            cluster.wait_until(PATIENCE, || cluster.is_caught_up(victim));
        }
        drop(stops);
        let ended = writers.into_iter().map(thread::ScopedJoinHandle::join);
        ended
            .map(|ended| ended.expect("a writer"))
            .collect::<Vec<_>>()
    });
    let mut stands: BTreeMap<String, u32> = BTreeMap::new();
    for value in cluster.values_in_log() {
        *stands.entry(value).or_default() += 1;
    }
    let (mut unknown, mut again, mut writes) = (0, 0, 0);
    for sent in &all {
        unknown += sent.unknown;
        for (value, attempts) in &sent.attempts {
            writes += 1;
            again += u32::from(*attempts > 1);
            let count = stands.remove(value);
            assert_eq!(count, Some(1), "{value}, sent {attempts} times");
        }
    }
    println!("{writes} writes, {again} of them sent again; {unknown} answers were unknown");
    assert!(stands.is_empty(), "nobody sent {stands:?}");
    assert!(unknown > 0 && again > writes / 10, "too little went wrong");
    cluster.stop_all();
}
