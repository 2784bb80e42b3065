//! How long a node that is restarted with its schema intact takes until it answers reads of bounded age itself: from the start of its
//! process, for the first slot and for all of them, under a load of writes that goes on at the other nodes.
//!
//! An answer may come from the slot's leader, to which the node forwards what it cannot answer yet; the node's own counter of
//! what it forwarded tells which it was. Nobody else asks this node, and a new process counts from nothing.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use super::store::{self, Store};
use crate::election::keys_of_slots;
use crate::http::{self, Connection};
use crate::load::{Outcome, judge, put_target};

/// Slots of the store: each node leads some.
const SLOTS: u32 = 16;
/// Keys that are there when it begins, so that the schema holds something.
const KEYS: usize = 20_000;
/// Connections that load these.
const CONNECTIONS: usize = 64;
/// Clients that go on to write, and the pause of each between two writes: some hundred writes per second.
const WRITERS: usize = 4;
const WRITE_PAUSE: Duration = Duration::from_millis(5);
/// How old a read may be, milliseconds: what is promised when a request does not say.
const MAX_STALENESS_MS: &str = "1000";
/// Longest that a node may take until it answers for all slots.
const LIMIT: Duration = Duration::from_secs(30);
/// Longest wait for one answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// Pause between two looks, on a machine that is to work on something else.
const LOOK_EVERY: Duration = Duration::from_millis(2);
/// The counter of what a node forwarded.
const FORWARDS: &str = "kvcluster_http_forwards_total{";

/// One restart, one line of the results.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Restart {
    /// The code that was measured.
    commit: String,
    /// The round, from 0.
    round: usize,
    /// `TERM` or `KILL`.
    signal: &'static str,
    /// Slots that the node led before.
    led: usize,
    /// From the start of the process until it answered for one slot.
    first_seconds: f64,
    /// The same, for every slot.
    all_seconds: f64,
    /// Writes that were acknowledged meanwhile, and attempts that were not.
    writes: usize,
    /// See `writes`.
    errors: usize,
}

/// Measures, appends the lines to the results and prints percentiles.
pub(super) fn run(rounds: usize, results: &PathBuf) -> Result<()> {
    let commit = store::commit()?;
    let mut store = Store::start(SLOTS, 0)?;
    super::write(&store, KEYS, CONNECTIONS, "k")?;
    let keys = keys_of_slots("restart", &store.settled()?)?;
    let mut client = Connection::open(&store.urls()[0])?;
    for key in &keys {
        let answer = client.request("PUT", &put_target(key, "there"), &[])?;
        ensure!(answer.status == 200, "{}", answer.text());
    }
    let mut all: Vec<Restart> = Vec::new();
    for round in 0..rounds {
        // One node after the other, so that who is restarted leads something.
        for (step, signal) in ["TERM", "KILL"].into_iter().enumerate() {
            let index = (round + step) % store.urls().len();
            let measured = measure(&mut store, index, signal, &keys)?;
            let line = Restart {
                commit: commit.clone(),
                round,
                ..measured
            };
            eprintln!("{line:?}");
            super::append(results, &line)?;
            all.push(line);
        }
    }
    store.stop()?;
    for signal in ["TERM", "KILL"] {
        println!("{}", summary(&all, signal));
    }
    Ok(())
}

fn summary(all: &[Restart], signal: &str) -> String {
    let lines = || all.iter().filter(|line| line.signal == signal);
    let sorted = |value: fn(&Restart) -> f64| -> Vec<f64> {
        let mut values: Vec<f64> = lines().map(value).collect();
        values.sort_by(f64::total_cmp);
        values
    };
    let (first, whole) = (
        sorted(|line| line.first_seconds),
        sorted(|line| line.all_seconds),
    );
    let at = |values: &[f64], percent: usize| values[(values.len() * percent).div_ceil(100) - 1];
    format!(
        "{} restarts by SIG{signal}: its first read of bounded age after p50 {:.2} s, p99 {:.2} s; of all {SLOTS} slots after p50 {:.2} s, p99 {:.2} s",
        first.len(),
        at(&first, 50),
        at(&first, 99),
        at(&whole, 50),
        at(&whole, 99),
    )
}

fn measure(
    store: &mut Store,
    index: usize,
    signal: &'static str,
    keys: &[String],
) -> Result<Restart> {
    let leaders = store.settled()?;
    let node = u32::try_from(index)?;
    let led = leaders.values().filter(|leader| **leader == node).count();
    let (url, admin) = (store.urls().swap_remove(index), store.admin_url(index));
    let others: Vec<String> = store
        .urls()
        .into_iter()
        .filter(|other| *other != url)
        .collect();
    let (stop, written, failed) = (
        AtomicBool::new(false),
        AtomicUsize::new(0),
        AtomicUsize::new(0),
    );
    thread::scope(|scope| {
        let write = |writer: usize| write_on(&others, writer, &stop, &written, &failed);
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| scope.spawn(move || write(writer)))
            .collect();
        let restarted = store.restart(index, signal);
        let times = restarted.and_then(|begun| wait(&url, &admin, keys, begun));
        stop.store(true, Ordering::Relaxed);
        for writer in writers {
            writer.join().ok().context("a client panicked")?;
        }
        let (first, whole) = times?;
        Ok(Restart {
            commit: String::new(),
            round: 0,
            signal,
            led,
            first_seconds: first.as_secs_f64(),
            all_seconds: whole.as_secs_f64(),
            writes: written.load(Ordering::Relaxed),
            errors: failed.load(Ordering::Relaxed),
        })
    })
}

/// Writes at other nodes until it is told to stop.
fn write_on(
    urls: &[String],
    writer: usize,
    stop: &AtomicBool,
    written: &AtomicUsize,
    failed: &AtomicUsize,
) {
    let url = &urls[writer % urls.len()];
    let mut connection = None;
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        let Some(mut usable) = connection.take().or_else(|| Connection::open(url).ok()) else {
            thread::sleep(WRITE_PAUSE);
            continue;
        };
        number += 1;
        let target = put_target(&format!("meanwhile{writer}-{}", number % 1_000), "x");
        match judge(usable.request("PUT", &target, &[])) {
            Outcome::Acknowledged => written.fetch_add(1, Ordering::Relaxed),
            _ => failed.fetch_add(1, Ordering::Relaxed),
        };
        connection = Some(usable).filter(Connection::is_usable);
        thread::sleep(WRITE_PAUSE);
    }
}

/// Asks for the keys, one of each slot, until the node has answered for all itself.
fn wait(url: &str, admin: &str, keys: &[String], begun: Instant) -> Result<(Duration, Duration)> {
    let mut connection: Option<Connection> = None;
    let mut left: Vec<&String> = keys.iter().collect();
    let mut first = None;
    let mut forwarded = 0;
    while !left.is_empty() {
        ensure!(
            begun.elapsed() < LIMIT,
            "after {LIMIT:?} it does not answer itself for {left:?}"
        );
        thread::sleep(LOOK_EVERY);
        let Some(mut usable) = connection
            .take()
            .or_else(|| Connection::open_within(url, ANSWER_LIMIT).ok())
        else {
            continue;
        };
        let key = left[0];
        let headers = [
            ("kvcluster-consistency", "bounded"),
            ("kvcluster-max-staleness-ms", MAX_STALENESS_MS),
        ];
        let answer = usable.request("GET", &format!("/key/{key}"), &headers);
        let at = begun.elapsed();
        connection = Some(usable).filter(Connection::is_usable);
        let Ok(before) = forwards(admin) else {
            continue;
        };
        let is_own = before == forwarded;
        forwarded = before;
        if answer.is_ok_and(|answer| answer.status == 200) && is_own {
            first.get_or_insert(at);
            left.remove(0);
        } else {
            left.rotate_left(1);
        }
    }
    let first = first.context("there are keys")?;
    Ok((first, begun.elapsed()))
}

/// How often the process at an admin port has forwarded a request.
fn forwards(admin: &str) -> Result<u64> {
    let text = http::once(admin, "GET", "/metrics")?.text();
    let lines = text.lines().filter(|line| line.starts_with(FORWARDS));
    lines
        .map(|line| -> Result<u64> {
            let count = line.rsplit(' ').next().context("a value")?;
            Ok(count.parse()?)
        })
        .sum()
}
