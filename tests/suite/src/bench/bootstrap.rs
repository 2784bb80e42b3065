//! How long a replica without state takes until it has everything durably: by a snapshot of another one, and by reading the
//! same log. Both in turn, on one store of one slot, while a client goes on to write.
//!
//! A log holds every write, a snapshot what is left of them: how much quicker the snapshot is depends on how often a key was
//! written. Where each was written once, snapshot and log carry the same rows, and the difference is the cost of a row by COPY
//! against that of a row in a flush: it is the least that a snapshot wins. A store that lives has more records than keys, without bound; so the
//! same keys are written again, all in turn, and both ways are measured once more at each number of writes per key that
//! is asked for. Nothing is trimmed, or there would be no log to replay.

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
    /// How often each was written until then.
    writes_per_key: usize,
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

/// Measures, appends the lines to the results and prints the medians and their ratio. `writes`: numbers of writes per key, ascending.
pub(super) fn run(keys: usize, writes: &[usize], rounds: usize, results: &PathBuf) -> Result<()> {
    let commit = store::commit()?;
    let mut store = Store::start(1, 0)?;
    let mut all: Vec<Bootstrap> = Vec::new();
    let mut written = 0;
    for &writes_per_key in writes {
        while written < writes_per_key {
            load(&store, keys)?;
            written += 1;
        }
        for round in 0..rounds {
            for (by, records_max) in [("snapshot", 0), ("log", NEVER)] {
                let measured = measure(&mut store, by, records_max)?;
                let line = Bootstrap {
                    commit: commit.clone(),
                    round,
                    keys,
                    writes_per_key,
                    ..measured
                };
                eprintln!("{line:?}");
                super::append(results, &line)?;
                all.push(line);
            }
        }
    }
    store.stop()?;
    for &writes_per_key in writes {
        println!("{}", summary(&all, writes_per_key));
    }
    Ok(())
}

/// Writes every key once.
fn load(store: &Store, keys: usize) -> Result<()> {
    for first in (0..keys).step_by(KEYS_AT_ONCE) {
        let count = KEYS_AT_ONCE.min(keys - first);
        let begun = Instant::now();
        super::write(store, count, CONNECTIONS, &format!("k{first}"))?;
        let took = begun.elapsed();
        eprintln!("{} of {keys} keys, {count} in {took:.1?}", first + count);
    }
    Ok(())
}

/// Medians, all values, and the ratio of the medians; the least and the greatest ratio of one round.
fn summary(all: &[Bootstrap], writes_per_key: usize) -> String {
    let of = |by: &str| -> Vec<&Bootstrap> {
        let lines = all.iter();
        let lines = lines.filter(|line| line.by == by && line.writes_per_key == writes_per_key);
        lines.collect()
    };
    let (snapshot, log) = (of("snapshot"), of("log"));
    let seconds = |lines: &[&Bootstrap]| -> Vec<f64> {
        let mut seconds: Vec<f64> = lines.iter().map(|line| line.seconds).collect();
        seconds.sort_by(f64::total_cmp);
        seconds
    };
    let median = |seconds: &[f64]| seconds[seconds.len() / 2];
    let mut ratios: Vec<f64> = snapshot
        .iter()
        .zip(&log)
        .map(|(snapshot, log)| log.seconds / snapshot.seconds)
        .collect();
    ratios.sort_by(f64::total_cmp);
    let (keys, records) = (snapshot[0].keys, snapshot[0].records);
    let (snapshot, log) = (seconds(&snapshot), seconds(&log));
    format!(
        "{keys} keys, {records} records, {writes_per_key} a key: by snapshot {:.1} s ({snapshot:.1?}), by the log {:.1} s ({log:.1?}): {:.1} times ({:.1} to {:.1} in one round)",
        median(&snapshot),
        median(&log),
        median(&log) / median(&snapshot),
        ratios[0],
        ratios[ratios.len() - 1],
    )
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
            writes_per_key: 0,
            records: rebuilt.records,
            seconds: rebuilt.took.as_secs_f64(),
            restored_rows: rebuilt.restored_rows,
            writes: written.load(Ordering::Relaxed),
            errors: failed.load(Ordering::Relaxed),
        })
    })
}
