//! How long a replica without state takes until it has everything durably: by a snapshot of another one, and by reading the
//! same log. Both in turn, on one store of one slot, while a client goes on to write.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use super::store::{self, Store};
use crate::http::Connection;
use crate::load::{Outcome, judge, put_target};

/// Keys that are loaded by one call, to bound what it keeps of each.
const KEYS_AT_ONCE: usize = 50_000;
/// Connections that load the keys.
const CONNECTIONS: usize = 256;
/// Pause of the client that goes on to write: about a hundred writes per second.
const WRITE_PAUSE: Duration = Duration::from_millis(10);
/// More records than any log has.
const NEVER: u64 = i64::MAX as u64;

/// One bootstrap, one line of the results.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Bootstrap {
    /// The code that was measured.
    commit: String,
    /// The round, from 0.
    round: usize,
    /// `snapshot` or `log`.
    by: &'static str,
    /// Keys of the slot when the measurement began.
    keys: usize,
    /// Records of its log at that time.
    records: i64,
    /// From the start of the process until it had all of that in PostgreSQL for good.
    seconds: f64,
    /// Rows that it took over from another node.
    restored_rows: u64,
    /// Writes that were acknowledged meanwhile, and attempts that were not.
    writes: usize,
    /// See `writes`.
    errors: usize,
}

/// Measures, appends the lines to the results and prints the medians and their ratio.
pub(super) fn run(keys: usize, rounds: usize, results: &PathBuf) -> Result<()> {
    let commit = store::commit()?;
    let mut store = Store::start(1, 0)?;
    for first in (0..keys).step_by(KEYS_AT_ONCE) {
        let count = KEYS_AT_ONCE.min(keys - first);
        let begun = Instant::now();
        super::write(&store, count, CONNECTIONS, &format!("k{first}"))?;
        let took = begun.elapsed();
        eprintln!("{} of {keys} keys, {count} in {took:.1?}", first + count);
    }
    let mut all: Vec<Bootstrap> = Vec::new();
    for round in 0..rounds {
        for (by, records_max) in [("snapshot", 0), ("log", NEVER)] {
            let measured = measure(&mut store, by, records_max)?;
            let line = Bootstrap {
                commit: commit.clone(),
                round,
                keys,
                ..measured
            };
            eprintln!("{line:?}");
            super::append(results, &line)?;
            all.push(line);
        }
    }
    store.stop()?;
    let of = |by: &str| {
        let mut seconds: Vec<f64> = all
            .iter()
            .filter(|line| line.by == by)
            .map(|line| line.seconds)
            .collect();
        seconds.sort_by(f64::total_cmp);
        seconds
    };
    let (snapshot, log) = (of("snapshot"), of("log"));
    let median = |seconds: &[f64]| seconds[seconds.len() / 2];
    println!(
        "{keys} keys: by snapshot {:.1} s ({snapshot:.1?}), by the log {:.1} s ({log:.1?}): {:.1} times",
        median(&snapshot),
        median(&log),
        median(&log) / median(&snapshot)
    );
    Ok(())
}

fn measure(store: &mut Store, by: &'static str, records_max: u64) -> Result<Bootstrap> {
    let (stop, written, failed) = (
        AtomicBool::new(false),
        AtomicUsize::new(0),
        AtomicUsize::new(0),
    );
    let url = store.leader_url()?;
    thread::scope(|scope| {
        let client = scope.spawn(|| -> Result<()> {
            let mut connection = Connection::open(&url)?;
            while !stop.load(Ordering::Relaxed) {
                let number = written.load(Ordering::Relaxed);
                let target = put_target(&format!("meanwhile{}", number % 1_000), "x");
                match judge(connection.request("PUT", &target, &[])) {
                    Outcome::Acknowledged => written.fetch_add(1, Ordering::Relaxed),
                    _ => failed.fetch_add(1, Ordering::Relaxed),
                };
                if !connection.is_usable() {
                    connection = Connection::open(&url)?;
                }
                thread::sleep(WRITE_PAUSE);
            }
            Ok(())
        });
        let rebuilt = store.rebuild_follower(records_max);
        stop.store(true, Ordering::Relaxed);
        client.join().ok().context("the client panicked")??;
        let rebuilt = rebuilt?;
        ensure!(
            (rebuilt.restored_rows > 0) == (by == "snapshot"),
            "by {by}, and {} rows were restored",
            rebuilt.restored_rows
        );
        Ok(Bootstrap {
            commit: String::new(),
            round: 0,
            by,
            keys: 0,
            records: rebuilt.records,
            seconds: rebuilt.took.as_secs_f64(),
            restored_rows: rebuilt.restored_rows,
            writes: written.load(Ordering::Relaxed),
            errors: failed.load(Ordering::Relaxed),
        })
    })
}
